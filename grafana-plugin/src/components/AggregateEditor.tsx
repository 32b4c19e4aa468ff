import React from 'react';
import { InlineField, InlineFieldRow, RadioButtonGroup } from '@grafana/ui';
import type { EditorProps } from '../queries';
import { words } from '../filters';
import { AggregateQuery } from '../types';
import { EventField } from './EventField';
import { FilterEditor } from './FilterEditor';
import { count } from './MessagesEditor';
import { PickField } from './PickField';
import { TextField } from './TextField';
import { WordsField } from './WordsField';

const METRICS = [
  { value: 'count', label: 'Count' },
  { value: 'rate', label: 'Rate', description: 'per second' },
  { value: 'bytes', label: 'Bytes' },
  { value: 'latency_p50', label: 'Latency p50', description: 'the median' },
  { value: 'latency_p90', label: 'Latency p90' },
  { value: 'latency_p95', label: 'Latency p95' },
  { value: 'latency_p99', label: 'Latency p99' },
  { value: 'latency_max', label: 'Latency max', description: 'the longest' },
];

/** The metrics that can be asked for together: latencies. What else was chosen last stands alone. */
export function together(metric: string): string {
  const isLatency = (word: string) => word.startsWith('latency_');
  const chosen = words(metric);
  const last = chosen.at(-1);
  if (!last) {
    return 'count';
  }
  return isLatency(last) ? chosen.filter(isLatency).join(',') : last;
}

const DIMENSIONS = [
  'disposition',
  'recipient_domain',
  'sender_domain',
  'connector',
  'remote_host',
  'provider',
  'queue',
  'class',
  'code',
  'event',
  'reason',
  'client_ip',
  'auth_user',
  'node',
].map((value) => ({ value }));

const STEPS = [
  { value: 'auto', label: 'Auto', description: 'follows the width of the panel' },
  { value: 'total', label: 'Total', description: 'one number for the whole range' },
  ...['1m', '5m', '15m', '1h', '1d'].map((value) => ({ value: value === '1d' ? '24h' : value, label: value })),
];

const VIEWS: Array<{ label: string; value: 'series' | 'table' }> = [
  { label: 'Series', value: 'series' },
  { label: 'Table', value: 'table' },
];

export function AggregateEditor(props: EditorProps<AggregateQuery>) {
  const { query, onChange, onRunQuery } = props;
  const id = (name: string) => `waybill-${query.refId}-${name}`;
  const set = (change: Partial<AggregateQuery>) => {
    onChange({ ...query, ...change });
    onRunQuery();
  };
  return (
    <>
      <InlineFieldRow>
        <WordsField
          id={id('metric')}
          label="Metric"
          value={query.metric ?? 'count'}
          options={METRICS}
          tooltip="Several latencies are answered at the cost of one"
          width={44}
          onChange={(metric) => set({ metric: together(metric) })}
        />
        <WordsField
          id={id('by')}
          label="By"
          value={query.by}
          options={DIMENSIONS}
          placeholder="nothing"
          tooltip="At most two"
          width={44}
          most={2}
          onChange={(by) => set({ by })}
        />
        <PickField
          id={id('step')}
          label="Step"
          value={query.step ?? 'auto'}
          options={STEPS}
          custom
          width={14}
          onChange={(step) => set({ step: step || 'auto', view: step === 'total' ? query.view : undefined })}
        />
        <TextField
          id={id('top')}
          label="Top"
          value={query.top}
          placeholder="10"
          tooltip='This many groups; the rest is "other"'
          width={8}
          onChange={(top) => onChange({ ...query, top: count(top) })}
          onDone={onRunQuery}
        />
        <TextField
          id={id('legend')}
          label="Legend"
          value={query.legend}
          placeholder="{{recipient_domain}}"
          tooltip="Empty: the values of the labels"
          width={24}
          onChange={(legend) => onChange({ ...query, legend: legend || undefined })}
          onDone={onRunQuery}
        />
        {query.step === 'total' && (
          <InlineField label="As">
            <RadioButtonGroup options={VIEWS} value={query.view ?? 'series'} onChange={(view) => set({ view })} />
          </InlineField>
        )}
      </InlineFieldRow>
      <FilterEditor {...props} />
      <InlineFieldRow>
        <EventField {...props} />
      </InlineFieldRow>
    </>
  );
}
