import React from 'react';
import { InlineField, InlineFieldRow, RadioButtonGroup } from '@grafana/ui';
import type { EditorProps } from '../queries';
import { MessagesQuery, Sort } from '../types';
import { FilterEditor } from './FilterEditor';
import { TextField } from './TextField';

const ROWS: Array<{ label: string; value: 'messages' | 'recipients'; description: string }> = [
  {
    label: 'Messages',
    value: 'messages',
    description: 'One row for each message; the recipient that is worst off speaks for it',
  },
  { label: 'Recipients', value: 'recipients', description: 'One row for each recipient of each message' },
];

export const ORDERS: Array<{ label: string; value: Sort }> = [
  { label: 'Newest first', value: '-time' },
  { label: 'Oldest first', value: 'time' },
];

export function MessagesEditor(props: EditorProps<MessagesQuery>) {
  const { query, onChange, onRunQuery } = props;
  const set = (change: Partial<MessagesQuery>) => {
    onChange({ ...query, ...change });
    onRunQuery();
  };
  return (
    <>
      <FilterEditor {...props} />
      <InlineFieldRow>
        <InlineField label="Rows">
          <RadioButtonGroup options={ROWS} value={query.rows ?? 'messages'} onChange={(rows) => set({ rows })} />
        </InlineField>
        <InlineField label="Order">
          <RadioButtonGroup options={ORDERS} value={query.sort ?? '-time'} onChange={(sort) => set({ sort })} />
        </InlineField>
        <TextField
          id={`waybill-${query.refId}-limit`}
          label="Limit"
          value={query.limit}
          placeholder="100"
          tooltip="At most 5000"
          width={10}
          onChange={(limit) => onChange({ ...query, limit: count(limit) })}
          onDone={onRunQuery}
        />
      </InlineFieldRow>
    </>
  );
}

/** A count as it was entered: a number, or text that holds a variable. */
export function count(text: string): number | string | undefined {
  if (text === '') {
    return undefined;
  }
  return /^\d+$/.test(text) ? Number(text) : text;
}
