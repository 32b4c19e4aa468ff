import {
  AdHocVariableFilter,
  AnnotationQuery,
  CoreApp,
  DataSourceGetTagValuesOptions,
  DataSourceInstanceSettings,
  MetricFindValue,
  QueryFilterOptions,
  QueryFixAction,
  ScopedVars,
  TimeRange,
  ToggleFilterAction,
} from '@grafana/data';
import { DataSourceWithBackend, getTemplateSrv } from '@grafana/runtime';
import {
  addTerm,
  ADHOC_KEYS,
  adhocTerms,
  DISPOSITIONS,
  filterKey,
  hasTerm,
  removeTerm,
  term,
  UNLISTED,
} from './filters';
import { isFiltered, isKnown, kindOf, normalize, QUERIES } from './queries';
import { QueuesQuery, WaybillOptions, WaybillQuery } from './types';
import { WaybillVariables } from './variables';

/** What an annotation shows when nothing else is chosen: what operators and limits did. */
const ANNOTATED = 'queue_held,queue_released,admin_acted,config_reloaded,pressure_changed';

/** The browser's side of the data source. Queries run in the backend. */
export class DataSource extends DataSourceWithBackend<WaybillQuery, WaybillOptions> {
  constructor(settings: DataSourceInstanceSettings<WaybillOptions>) {
    super(settings);
    this.variables = new WaybillVariables(this);
    this.annotations = {
      getDefaultQuery: () => ({ ...QUERIES.events.defaults, queryType: 'events', event: ANNOTATED }),
      prepareQuery: (annotation: AnnotationQuery<WaybillQuery>) =>
        annotation.target && { ...normalize(annotation.target), refId: annotation.target.refId || 'Anno' },
    };
  }

  getDefaultQuery(app: CoreApp): Partial<WaybillQuery> {
    return app === CoreApp.UnifiedAlerting || app === CoreApp.CloudAlerting
      ? { ...QUERIES.aggregate.defaults, queryType: 'aggregate' }
      : { ...QUERIES.messages.defaults, queryType: 'messages' };
  }

  filterQuery(query: WaybillQuery): boolean {
    const ours = normalize(query);
    return !query.hide && (!isKnown(ours) || kindOf(ours).isComplete(ours));
  }

  getQueryDisplayText(query: WaybillQuery): string {
    const ours = normalize(query);
    return isKnown(ours) ? kindOf(ours).text(ours).trim() : JSON.stringify(query);
  }

  /** Puts the values of variables into every string, and a dashboard's ad-hoc filters into the free text. */
  applyTemplateVariables(query: WaybillQuery, scopedVars: ScopedVars, filters?: AdHocVariableFilter[]): WaybillQuery {
    const ours = replaceAll(normalize(query), (text) => getTemplateSrv().replace(text, scopedVars, 'csv'));
    return withAdhoc(ours, filters);
  }

  interpolateVariablesInQueries(
    queries: WaybillQuery[],
    scopedVars: ScopedVars,
    filters?: AdHocVariableFilter[]
  ): WaybillQuery[] {
    return queries.map((query) => ({
      ...this.applyTemplateVariables(query, scopedVars, filters),
      datasource: this.getRef(),
    }));
  }

  /** The values of a field, the frequent first, as the pickers and variables show them. */
  async getValues(field: string, prefix = '', range?: TimeRange): Promise<string[]> {
    if (UNLISTED.has(field)) {
      return [];
    }
    if (field === 'disposition') {
      return DISPOSITIONS.filter((word) => word.startsWith(prefix));
    }
    const params: Record<string, string> = { field };
    if (prefix) {
      params.prefix = prefix;
    }
    if (range) {
      params.from = range.from.toISOString();
      params.to = range.to.toISOString();
    }
    const { values } = await this.getResource<{ values: string[] }>('values', params);
    return values;
  }

  async getTagKeys(): Promise<MetricFindValue[]> {
    return ADHOC_KEYS.map((text) => ({ text }));
  }

  async getTagValues({ key, timeRange }: DataSourceGetTagValuesOptions<WaybillQuery>): Promise<MetricFindValue[]> {
    const values = await this.getValues(filterKey(key), '', timeRange);
    return values.map((text) => ({ text }));
  }

  /** Adds a filter for a value that was clicked, or takes it away when it is there. */
  toggleQueryFilter(query: WaybillQuery, filter: ToggleFilterAction): WaybillQuery {
    const wanted = term(filter.options.key, filter.options.value, filter.type === 'FILTER_OUT');
    if (!isFiltered(query)) {
      return query;
    }
    return { ...query, q: hasTerm(query.q, wanted) ? removeTerm(query.q, wanted) : addTerm(query.q, wanted) };
  }

  queryHasFilter(query: WaybillQuery, filter: QueryFilterOptions): boolean {
    return isFiltered(query) && hasTerm(query.q, term(filter.key, filter.value));
  }

  modifyQuery(query: WaybillQuery, action: QueryFixAction): WaybillQuery {
    const { key, value } = action.options ?? {};
    if (!isFiltered(query) || !key || !value) {
      return query;
    }
    switch (action.type) {
      case 'ADD_FILTER':
        return { ...query, q: addTerm(query.q, term(key, value)) };
      case 'ADD_FILTER_OUT':
        return { ...query, q: addTerm(query.q, term(key, value, true)) };
      default:
        return query;
    }
  }

  getSupportedQueryModifications(): string[] {
    return ['ADD_FILTER', 'ADD_FILTER_OUT'];
  }
}

/** The query with each of its own strings replaced; what Grafana put there stays. */
function replaceAll<Q extends WaybillQuery>(query: Q, replace: (text: string) => string): Q {
  const kept = new Set(['refId', 'queryType', 'key', 'datasource']);
  return Object.fromEntries(
    Object.entries(query).map(([key, value]) => [
      key,
      typeof value === 'string' && !kept.has(key) ? replace(value) : value,
    ])
  ) as unknown as Q;
}

function withAdhoc(query: WaybillQuery, filters: AdHocVariableFilter[] = []): WaybillQuery {
  if (filters.length === 0) {
    return query;
  }
  if (isFiltered(query)) {
    return { ...query, q: [query.q, ...adhocTerms(filters)].filter(Boolean).join(' ') };
  }
  if (query.queryType === 'queues') {
    return filters.reduce(narrowQueues, query);
  }
  return query;
}

/** The queue knows connector, state and next hop; filters of other kinds do not concern it. */
function narrowQueues(query: QueuesQuery, { key, operator, value, values }: AdHocVariableFilter): QueuesQuery {
  const wanted = operator === '=|' && values ? values.join(',') : value;
  if (operator !== '=' && operator !== '=|') {
    return query;
  }
  switch (filterKey(key)) {
    case 'connector':
      return { ...query, connector: value };
    case 'queue':
    case 'domain':
      return { ...query, queue: value };
    case 'state':
      return { ...query, state: wanted };
    default:
      return query;
  }
}
