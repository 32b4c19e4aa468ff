import React from 'react';
import { fireEvent, render, screen } from '@testing-library/react';
import { DataSource } from '../datasource';
import { VariableQueryEditor } from './VariableQueryEditor';

it('edits field and prefix of a variable', () => {
  const onChange = jest.fn();
  const onRunQuery = jest.fn();
  render(
    <VariableQueryEditor
      datasource={{} as DataSource}
      query={{ refId: '', field: 'connector' }}
      onChange={onChange}
      onRunQuery={onRunQuery}
    />
  );
  expect(screen.getByRole('combobox', { name: 'Values of' })).toHaveValue('connector');
  fireEvent.change(screen.getByRole('textbox', { name: 'beginning with' }), { target: { value: 'int' } });
  expect(onChange).toHaveBeenCalledWith({ refId: 'Values', field: 'connector', prefix: 'int' });
  fireEvent.blur(screen.getByRole('textbox', { name: 'beginning with' }));
  expect(onRunQuery).toHaveBeenCalled();
});
