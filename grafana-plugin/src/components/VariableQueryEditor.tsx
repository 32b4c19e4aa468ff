import React from 'react';
import { QueryEditorProps } from '@grafana/data';
import { InlineFieldRow } from '@grafana/ui';
import { DataSource } from '../datasource';
import { ADHOC_KEYS, UNLISTED } from '../filters';
import { ValuesQuery, WaybillOptions, WaybillQuery } from '../types';
import { PickField } from './PickField';
import { TextField } from './TextField';

type Props = QueryEditorProps<DataSource, WaybillQuery, WaybillOptions, ValuesQuery>;

const FIELDS = [...ADHOC_KEYS.filter((key) => !UNLISTED.has(key)), 'sender_domain', 'reason', 'node'].map((value) => ({
  value,
}));

/** The query of a dashboard's variable: which field, and what its values begin with. */
export function VariableQueryEditor({ query, onChange, onRunQuery }: Props) {
  const set = (change: Partial<ValuesQuery>) => {
    const next = { ...query, refId: query.refId || 'Values', ...change };
    onChange(next);
  };
  return (
    <InlineFieldRow>
      <PickField
        id="waybill-variable-field"
        label="Values of"
        value={query.field}
        options={FIELDS}
        placeholder="choose a field"
        custom
        width={26}
        onChange={(field) => {
          set({ field });
          onRunQuery();
        }}
      />
      <TextField
        id="waybill-variable-prefix"
        label="beginning with"
        value={query.prefix}
        placeholder="anything"
        width={26}
        onChange={(prefix) => set({ prefix: prefix || undefined })}
        onDone={onRunQuery}
      />
    </InlineFieldRow>
  );
}
