import { DataSourceJsonData } from '@grafana/data';
import { DataQuery } from '@grafana/schema';

/**
 * The part of a query that selects messages or facts. The keys are the
 * parameters of the tracking API; the empty string and "*" select all;
 * `disposition` and `event` take several words, separated by commas.
 */
export interface Filter {
  q?: string;
  sender?: string;
  recipient?: string;
  domain?: string;
  message_id?: string;
  queue_id?: string;
  client_ip?: string;
  auth_user?: string;
  connector?: string;
  remote_host?: string;
  session_id?: string;
  queue?: string;
  provider?: string;
  disposition?: string;
  class?: string;
  code?: string;
  event?: string;
  min_latency?: string;
  max_latency?: string;
  min_size?: string;
  max_size?: string;
  subject?: string;
  reason?: string;
  node?: string;
  source?: string;
  external_id?: string;
}

export type Sort = '-time' | 'time';

/** Searches messages: a table with one row for each message, or for each recipient. */
export interface MessagesQuery extends DataQuery, Filter {
  queryType: 'messages';
  rows?: 'messages' | 'recipients';
  sort?: Sort;
  limit?: number | string;
}

export type TimelineView =
  '' | 'facts' | 'logs' | 'trace' | 'stages' | 'recipients' | 'attempts' | 'checks' | 'transcript';

/** Shows the life of one message, named by queue ID, message UID or Message-ID. */
export interface TimelineQuery extends DataQuery {
  queryType: 'timeline';
  id?: string;
  view?: TimelineView;
}

/** Numbers over facts, as series over time or one for each group. */
export interface AggregateQuery extends DataQuery, Filter {
  queryType: 'aggregate';
  metric?: string;
  by?: string;
  step?: string;
  top?: number | string;
  legend?: string;
  view?: 'series' | 'table';
}

/** The queue as it is now: a table of next hops, or one number of each. */
export interface QueuesQuery extends DataQuery {
  queryType: 'queues';
  queue?: string;
  connector?: string;
  state?: string;
  value?: string;
}

/** The facts themselves, as log lines. */
export interface EventsQuery extends DataQuery, Filter {
  queryType: 'events';
  sort?: Sort;
  limit?: number | string;
}

export type WaybillQuery = MessagesQuery | TimelineQuery | AggregateQuery | QueuesQuery | EventsQuery;
export type QueryType = WaybillQuery['queryType'];
export type FilteredQuery = MessagesQuery | AggregateQuery | EventsQuery;

/** What Grafana sends to the data source of an exemplar: Tempo's form. */
export interface ExemplarQuery extends DataQuery {
  queryType: 'traceql';
  query?: string;
}

/** A variable's query: the values of one field that begin with a prefix. */
export interface ValuesQuery extends DataQuery {
  field: string;
  prefix?: string;
}

/** The settings of a data source; the names are those that Grafana's SDK reads. */
export interface WaybillOptions extends DataSourceJsonData {
  tlsSkipVerify?: boolean;
  tlsAuthWithCACert?: boolean;
  tlsAuth?: boolean;
  serverName?: string;
  timeout?: number;
}

/** The secrets of a data source, which the browser can set and never read. */
export interface WaybillSecrets {
  token?: string;
  tlsCACert?: string;
  tlsClientCert?: string;
  tlsClientKey?: string;
}
