import React, { ComponentProps, useState } from 'react';
import { fireEvent, render, screen } from '@testing-library/react';
import { ConfigEditor } from './ConfigEditor';

type Options = ComponentProps<typeof ConfigEditor>['options'];

function show(change: Partial<Options> = {}) {
  const onOptionsChange = jest.fn();
  function Page() {
    const [options, setOptions] = useState({
      url: '',
      jsonData: {},
      secureJsonFields: {},
      secureJsonData: {},
      ...change,
    } as Options);
    return (
      <ConfigEditor
        options={options}
        onOptionsChange={(next) => {
          onOptionsChange(next);
          setOptions(next);
        }}
      />
    );
  }
  render(<Page />);
  return onOptionsChange;
}

const input = (name: RegExp) => screen.getByLabelText(name);

describe('ConfigEditor', () => {
  it('takes the URL', () => {
    const changed = show();
    fireEvent.change(input(/^URL/), { target: { value: 'http://mx1:8025' } });
    expect(changed).toHaveBeenLastCalledWith(expect.objectContaining({ url: 'http://mx1:8025' }));
  });

  it('keeps the token among the secrets', () => {
    const changed = show();
    fireEvent.change(input(/^Token/), { target: { value: 's3cret' } });
    expect(changed).toHaveBeenLastCalledWith(
      expect.objectContaining({ jsonData: {}, secureJsonData: { token: 's3cret' } })
    );
  });

  it('shows that a token is set, not which, and resets it', () => {
    const changed = show({ secureJsonFields: { token: true } });
    expect(input(/^Token/)).toBeDisabled();
    fireEvent.click(screen.getByRole('button', { name: 'Reset' }));
    expect(changed).toHaveBeenLastCalledWith(
      expect.objectContaining({ secureJsonFields: { token: false }, secureJsonData: { token: '' } })
    );
  });

  it('takes a timeout in seconds, and none', () => {
    const changed = show();
    fireEvent.change(input(/^Timeout/), { target: { value: '5' } });
    expect(changed).toHaveBeenLastCalledWith(expect.objectContaining({ jsonData: { timeout: 5 } }));
    fireEvent.change(input(/^Timeout/), { target: { value: '' } });
    expect(changed).toHaveBeenLastCalledWith(expect.objectContaining({ jsonData: { timeout: undefined } }));
  });

  it('asks for certificates only when they are used', () => {
    show();
    expect(screen.queryByLabelText(/^CA certificate/)).not.toBeInTheDocument();
    fireEvent.click(input(/^Own CA/));
    expect(input(/^CA certificate/)).toBeInTheDocument();
    fireEvent.click(input(/^Client certificate/));
    expect(input(/^Key/)).toBeInTheDocument();
  });

  it('warns of skipped verification', () => {
    show();
    expect(screen.queryByText(/can read the token/)).not.toBeInTheDocument();
    fireEvent.click(input(/^Skip verification/));
    expect(screen.getByText(/can read the token/)).toBeInTheDocument();
  });
});
