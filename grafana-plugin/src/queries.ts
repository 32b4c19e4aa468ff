import { ComponentType } from 'react';
import { DataQuery } from '@grafana/schema';
import type { DataSource } from './datasource';
import { AggregateEditor } from './components/AggregateEditor';
import { EventsEditor } from './components/EventsEditor';
import { MessagesEditor } from './components/MessagesEditor';
import { QueuesEditor } from './components/QueuesEditor';
import { TimelineEditor } from './components/TimelineEditor';
import { FILTER_KEYS, term } from './filters';
import { ExemplarQuery, FilteredQuery, QueryType, WaybillQuery } from './types';

export interface EditorProps<Q extends WaybillQuery> {
  datasource: DataSource;
  query: Q;
  onChange: (query: Q) => void;
  onRunQuery: () => void;
}

interface Kind<Q extends WaybillQuery> {
  label: string;
  description: string;
  defaults: Omit<Q, keyof DataQuery>;
  Editor: ComponentType<EditorProps<Q>>;
  /** Whether the query can be run as it is. */
  isComplete: (query: Q) => boolean;
  /** The query in a few words, for the query history. */
  text: (query: Q) => string;
}

type Kinds = { [T in QueryType]: Kind<Extract<WaybillQuery, { queryType: T }>> };

const always = () => true;

/** THE table of query types. Its twin is in pkg/plugin/query.go. */
export const QUERIES: Kinds = {
  messages: {
    label: 'Messages',
    description: 'Search messages: who sent what to whom, and what became of it',
    defaults: { rows: 'messages', sort: '-time', limit: 100 },
    Editor: MessagesEditor,
    isComplete: always,
    text: (query) => `messages ${filterText(query)}`,
  },
  timeline: {
    label: 'Timeline',
    description: 'The life of one message: facts, stages, trace, transcript',
    defaults: { id: '', view: '' },
    Editor: TimelineEditor,
    isComplete: (query) => Boolean(query.id?.trim()),
    text: (query) => `timeline of ${query.id}`,
  },
  aggregate: {
    label: 'Numbers',
    description: 'Counts, rates, bytes and latencies, over time or in total; for panels and alert rules',
    defaults: { metric: 'count', by: 'disposition', step: 'auto', top: 10 },
    Editor: AggregateEditor,
    isComplete: always,
    text: (query) => `${query.metric ?? 'count'} by ${query.by || 'nothing'} ${filterText(query)}`,
  },
  queues: {
    label: 'Queues',
    description: 'The queue as it is now, by next hop',
    defaults: {},
    Editor: QueuesEditor,
    isComplete: always,
    text: (query) => `queues ${query.queue ?? ''}`,
  },
  events: {
    label: 'Facts',
    description: 'The records themselves, as log lines',
    defaults: { sort: '-time', limit: 200 },
    Editor: EventsEditor,
    isComplete: always,
    text: (query) => `facts ${filterText(query)}`,
  },
};

export const QUERY_TYPES = Object.keys(QUERIES) as QueryType[];

/**
 * The entry of the table for a query. TypeScript cannot see that the entry's
 * type follows from the query's, so this one place says it.
 */
export function kindOf<Q extends WaybillQuery>(query: Q): Kind<Q> {
  return QUERIES[query.queryType] as unknown as Kind<Q>;
}

/** A new query of the given type, with what both types have in common kept. */
export function changeType(query: WaybillQuery, queryType: QueryType): WaybillQuery {
  const { refId, datasource, hide, key } = query;
  const base = { refId, datasource, hide, key };
  const filter = isFiltered(query) && isFilteredType(queryType) ? filterOf(query) : {};
  return { ...base, ...QUERIES[queryType].defaults, ...filter, queryType } as WaybillQuery;
}

/** Makes a query of ours of whatever a panel, a link or an exemplar holds. */
export function normalize(query: WaybillQuery | ExemplarQuery | DataQuery): WaybillQuery {
  if (query.queryType === 'traceql') {
    const { query: id, ...rest } = query as ExemplarQuery;
    return { ...rest, queryType: 'timeline', id: id ?? '', view: '' };
  }
  if (!query.queryType) {
    return { ...QUERIES.messages.defaults, ...query, queryType: 'messages' };
  }
  return query as WaybillQuery;
}

export function isKnown(query: DataQuery): boolean {
  return QUERY_TYPES.some((type) => type === query.queryType);
}

function isFilteredType(type: QueryType): boolean {
  return type === 'messages' || type === 'aggregate' || type === 'events';
}

export function isFiltered(query: WaybillQuery): query is FilteredQuery {
  return isFilteredType(query.queryType);
}

function filterOf(query: FilteredQuery): Record<string, string> {
  return Object.fromEntries(
    FILTER_KEYS.flatMap((key) => {
      const value = query[key];
      return value ? [[key, value]] : [];
    })
  );
}

function filterText(query: FilteredQuery): string {
  return Object.entries(filterOf(query))
    .map(([key, value]) => (key === 'q' ? value : term(key, value)))
    .join(' ');
}
