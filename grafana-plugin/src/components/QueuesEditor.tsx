import React from 'react';
import { InlineFieldRow } from '@grafana/ui';
import type { EditorProps } from '../queries';
import { QueuesQuery } from '../types';
import { PickField } from './PickField';
import { TextField } from './TextField';
import { WordsField } from './WordsField';

const STATES = ['ready', 'connecting', 'active', 'retry', 'held'].map((value) => ({ value }));

const VALUES = [
  { value: 'messages', label: 'Messages' },
  { value: 'queued', label: 'Queued' },
  { value: 'active', label: 'Active' },
  { value: 'deferred', label: 'Deferred' },
  { value: 'held', label: 'Held' },
  { value: 'bytes', label: 'Bytes' },
  { value: 'oldest_age_seconds', label: 'Age of the oldest' },
  { value: 'due_lag_seconds', label: 'Due lag', description: 'how late the relay itself is' },
  { value: 'in_per_minute', label: 'In per minute' },
  { value: 'out_per_minute', label: 'Out per minute' },
  { value: 'velocity', label: 'Velocity', description: 'out minus in, per minute' },
];

export function QueuesEditor({ datasource, query, onChange, onRunQuery }: EditorProps<QueuesQuery>) {
  const id = (name: string) => `waybill-${query.refId}-${name}`;
  const set = (change: Partial<QueuesQuery>) => {
    onChange({ ...query, ...change });
    onRunQuery();
  };
  return (
    <InlineFieldRow>
      <TextField
        id={id('queue')}
        label="Next hop"
        value={query.queue}
        placeholder="any"
        tooltip="A part of its name"
        width={24}
        onChange={(queue) => onChange({ ...query, queue: queue || undefined })}
        onDone={onRunQuery}
      />
      <PickField
        id={id('connector')}
        label="Connector"
        value={query.connector}
        placeholder="any"
        custom
        options={(typed) =>
          datasource
            .getValues('connector', typed)
            .then((values) => values.map((value) => ({ value })))
            .catch(() => [])
        }
        onChange={(connector) => set({ connector: connector || undefined })}
      />
      <WordsField
        id={id('state')}
        label="State"
        value={query.state}
        placeholder="any"
        options={STATES}
        onChange={(state) => set({ state: state || undefined })}
      />
      <PickField
        id={id('value')}
        label="Number"
        value={query.value}
        placeholder="none: a table"
        tooltip="One number of each next hop: for alert rules and gauges"
        options={VALUES}
        width={24}
        onChange={(value) => set({ value: value || undefined })}
      />
    </InlineFieldRow>
  );
}
