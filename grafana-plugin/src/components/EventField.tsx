import React from 'react';
import type { EditorProps } from '../queries';
import { AggregateQuery, EventsQuery } from '../types';
import { WordsField } from './WordsField';

/** The facts that the relay states; a newer relay may know more, which can be typed. */
export const EVENTS = [
  'message_queued',
  'message_routed',
  'attempt_finished',
  'recipient_relayed',
  'recipient_bounced',
  'recipient_expired',
  'recipient_dropped',
  'recipient_late',
  'message_retired',
  'dsn_queued',
  'sender_refused',
  'recipient_refused',
  'message_refused',
  'session_opened',
  'session_closed',
  'session_refused',
  'auth_succeeded',
  'auth_failed',
  'tls_negotiated',
  'throttle_engaged',
  'pressure_changed',
  'queue_held',
  'queue_released',
  'admin_acted',
  'message_poisoned',
  'config_reloaded',
  'certificate_reloaded',
];

/** The picker of facts. */
export function EventField<Q extends EventsQuery | AggregateQuery>({ query, onChange, onRunQuery }: EditorProps<Q>) {
  return (
    <WordsField
      id={`waybill-${query.refId}-event`}
      label="Facts"
      value={query.event}
      placeholder="any"
      tooltip="Which kinds of facts to look at"
      width={40}
      options={EVENTS.map((value) => ({ value }))}
      onChange={(event) => {
        onChange({ ...query, event: event || undefined });
        onRunQuery();
      }}
    />
  );
}
