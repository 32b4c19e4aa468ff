import React from 'react';
import { InlineField, InlineFieldRow, RadioButtonGroup } from '@grafana/ui';
import type { EditorProps } from '../queries';
import { EventsQuery } from '../types';
import { EventField } from './EventField';
import { FilterEditor } from './FilterEditor';
import { count, ORDERS } from './MessagesEditor';
import { TextField } from './TextField';

export function EventsEditor(props: EditorProps<EventsQuery>) {
  const { query, onChange, onRunQuery } = props;
  return (
    <>
      <FilterEditor {...props} />
      <InlineFieldRow>
        <EventField {...props} />
        <InlineField label="Order">
          <RadioButtonGroup
            options={ORDERS}
            value={query.sort ?? '-time'}
            onChange={(sort) => {
              onChange({ ...query, sort });
              onRunQuery();
            }}
          />
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
