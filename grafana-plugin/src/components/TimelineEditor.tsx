import React from 'react';
import { InlineField, InlineFieldRow, RadioButtonGroup } from '@grafana/ui';
import type { EditorProps } from '../queries';
import { TimelineQuery, TimelineView } from '../types';
import { TextField } from './TextField';

const VIEWS: Array<{ label: string; value: TimelineView; description: string }> = [
  { label: 'All', value: '', description: 'Facts and trace: for Explore' },
  { label: 'Facts', value: 'facts', description: 'A table of what happened' },
  { label: 'Trace', value: 'trace', description: 'For the traces panel: the message is the trace, attempts are spans' },
  { label: 'Stages', value: 'stages', description: 'Where the time went: for a bar gauge or a table' },
  { label: 'Recipients', value: 'recipients', description: 'The latest state of each recipient' },
  { label: 'Attempts', value: 'attempts', description: 'Each try to hand it on, with the next hop’s words' },
  { label: 'Checks', value: 'checks', description: 'What was checked, and what was changed' },
  { label: 'Log', value: 'logs', description: 'The facts as log lines' },
  { label: 'Transcript', value: 'transcript', description: 'The SMTP conversations, without secrets' },
];

export function TimelineEditor({ query, onChange, onRunQuery }: EditorProps<TimelineQuery>) {
  return (
    <InlineFieldRow>
      <TextField
        id={`waybill-${query.refId}-id`}
        label="Message"
        value={query.id}
        placeholder="Queue ID, message UID or <Message-ID>"
        tooltip="The queue ID stands in the reply to the client, in the Received header field, and in every record"
        width={46}
        required
        onChange={(id) => onChange({ ...query, id })}
        onDone={onRunQuery}
      />
      <InlineField label="View">
        <RadioButtonGroup
          options={VIEWS}
          value={query.view ?? ''}
          onChange={(view) => {
            onChange({ ...query, view });
            onRunQuery();
          }}
        />
      </InlineField>
    </InlineFieldRow>
  );
}
