import React, { useState } from 'react';
import { act, fireEvent, render, screen } from '@testing-library/react';
import { DataSourceInstanceSettings } from '@grafana/data';
import { DataSource } from '../datasource';
import { ExemplarQuery, WaybillOptions, WaybillQuery } from '../types';
import { together } from './AggregateEditor';
import { QueryEditor } from './QueryEditor';

const datasource = new DataSource({
  id: 1,
  uid: 'waybill',
  jsonData: {},
  meta: {},
} as unknown as DataSourceInstanceSettings<WaybillOptions>);

function show(initial: WaybillQuery | ExemplarQuery) {
  const onChange = jest.fn();
  const onRunQuery = jest.fn();
  function Panel() {
    const [query, setQuery] = useState(initial as WaybillQuery);
    const change = (next: WaybillQuery) => {
      onChange(next);
      setQuery(next);
    };
    return <QueryEditor datasource={datasource} query={query} onChange={change} onRunQuery={onRunQuery} />;
  }
  render(<Panel />);
  return { onChange, onRunQuery };
}

const input = (name: string | RegExp) => screen.getByRole('textbox', { name });
const picker = (name: string | RegExp) => screen.getByRole('combobox', { name });

describe('QueryEditor', () => {
  it('searches by recipient when the input is final', () => {
    const { onChange, onRunQuery } = show({ refId: 'A', queryType: 'messages' });
    fireEvent.change(input('Recipient'), { target: { value: '*@example.org' } });
    expect(onChange).toHaveBeenLastCalledWith({ refId: 'A', queryType: 'messages', recipient: '*@example.org' });
    expect(onRunQuery).not.toHaveBeenCalled();
    fireEvent.keyDown(input('Recipient'), { key: 'Enter' });
    expect(onRunQuery).toHaveBeenCalledTimes(1);
  });

  it('labels the inputs of the builder', () => {
    show({ refId: 'A', queryType: 'messages' });
    for (const name of ['Sender', 'Recipient', 'Queue ID', 'Filter text', 'Limit']) {
      expect(input(name)).toBeInTheDocument();
    }
    for (const name of ['Domain', 'Connector', 'Disposition']) {
      expect(picker(name)).toBeInTheDocument();
    }
  });

  it('shows the other filters on demand, and when one is set', () => {
    show({ refId: 'A', queryType: 'messages' });
    expect(screen.queryByRole('textbox', { name: 'Message-ID' })).not.toBeInTheDocument();
    fireEvent.click(screen.getByRole('button', { name: 'More filters' }));
    expect(input('Message-ID')).toBeInTheDocument();
  });

  it('shows the other filters when one of them is set', () => {
    show({ refId: 'A', queryType: 'messages', code: '5xx' });
    expect(input('Code')).toHaveValue('5xx');
  });

  it('keeps the filters when the type changes', async () => {
    const { onChange, onRunQuery } = show({ refId: 'A', queryType: 'messages', recipient: 'ada@example.org' });
    await act(async () => fireEvent.click(screen.getByRole('radio', { name: 'Numbers' })));
    expect(onChange).toHaveBeenLastCalledWith(
      expect.objectContaining({ queryType: 'aggregate', metric: 'count', recipient: 'ada@example.org' })
    );
    expect(onRunQuery).toHaveBeenCalled();
    expect(picker('Metric')).toBeInTheDocument();
    expect(screen.getByText('Count')).toBeInTheDocument();
    expect(picker('By')).toBeInTheDocument();
  });

  it('asks for a message in a timeline', () => {
    const { onChange } = show({ refId: 'A', queryType: 'timeline', id: '' });
    fireEvent.change(input('Message'), { target: { value: '01KANF5M80' } });
    expect(onChange).toHaveBeenLastCalledWith({ refId: 'A', queryType: 'timeline', id: '01KANF5M80' });
    fireEvent.click(screen.getByRole('radio', { name: 'Trace' }));
    expect(onChange).toHaveBeenLastCalledWith(expect.objectContaining({ view: 'trace' }));
  });

  it.each([
    ['nothing', '', 'count'],
    ['one', 'bytes', 'bytes'],
    ['several latencies', 'latency_p99,latency_p50', 'latency_p99,latency_p50'],
    ['a latency after something else', 'count,latency_p50', 'latency_p50'],
    ['something else after latencies', 'latency_p50,latency_p99,rate', 'rate'],
    ['a variable after a latency', 'latency_p50,$metric', '$metric'],
  ])('asks for metrics together that can be: %s', (_, chosen, want) => {
    expect(together(chosen)).toBe(want);
  });

  it('knows each of the percentiles of a query', () => {
    show({ refId: 'A', queryType: 'aggregate', metric: 'latency_p50,latency_p99' });
    expect(screen.getByText('Latency p50')).toBeInTheDocument(); // the others do not fit where nothing has a width
    expect(screen.queryByText('latency_p50')).not.toBeInTheDocument();
  });

  it('offers a table for totals only', () => {
    show({ refId: 'A', queryType: 'aggregate', step: 'total' });
    expect(screen.getByRole('radio', { name: 'Table' })).toBeInTheDocument();
  });

  it('edits the queues and the facts', () => {
    show({ refId: 'A', queryType: 'queues' });
    expect(picker('Number')).toBeInTheDocument();
    show({ refId: 'B', queryType: 'events' });
    expect(picker('Facts')).toBeInTheDocument();
  });

  it('shows an exemplar as the timeline that it is', () => {
    show({ refId: 'A', queryType: 'traceql', query: 'uid-1' });
    expect(input('Message')).toHaveValue('uid-1');
  });

  it('says when it does not know a type', () => {
    show({ refId: 'A', queryType: 'sql' } as never);
    expect(screen.getByText(/does not know the query type "sql"/)).toBeInTheDocument();
  });

  it('keeps a limit that is a variable', () => {
    const { onChange } = show({ refId: 'A', queryType: 'messages' });
    fireEvent.change(input('Limit'), { target: { value: '$limit' } });
    expect(onChange).toHaveBeenLastCalledWith(expect.objectContaining({ limit: '$limit' }));
    fireEvent.change(input('Limit'), { target: { value: '20' } });
    expect(onChange).toHaveBeenLastCalledWith(expect.objectContaining({ limit: 20 }));
  });
});
