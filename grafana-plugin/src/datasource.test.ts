import { CoreApp, DataQueryRequest, DataSourceInstanceSettings, dateTime } from '@grafana/data';
import { setTemplateSrv, TemplateSrv } from '@grafana/runtime';
import { lastValueFrom } from 'rxjs';
import { DataSource } from './datasource';
import { ExemplarQuery, MessagesQuery, QueuesQuery, ValuesQuery, WaybillOptions, WaybillQuery } from './types';

const settings = {
  id: 1,
  uid: 'waybill',
  type: 'waybill-mail-datasource',
  name: 'Waybill',
  jsonData: {},
  meta: {},
} as unknown as DataSourceInstanceSettings<WaybillOptions>;

const VALUES: Record<string, string> = { $domain: 'example.org', '${which}': 'bounced,deferred', $field: 'class' };

function newDatasource() {
  const datasource = new DataSource(settings);
  const getResource = jest.spyOn(datasource, 'getResource').mockResolvedValue({ values: ['internet', 'submission'] });
  return { datasource, getResource };
}

beforeEach(() => {
  setTemplateSrv({ replace: (text?: string) => VALUES[text ?? ''] ?? text ?? '' } as TemplateSrv);
});

const messages: MessagesQuery = { refId: 'A', queryType: 'messages' };

describe('variables', () => {
  it('go into every string of a query, and nowhere else', () => {
    const { datasource } = newDatasource();
    const query: MessagesQuery = {
      ...messages,
      domain: '$domain',
      disposition: '${which}',
      limit: 5,
      refId: '$domain',
    };
    expect(datasource.applyTemplateVariables(query, {})).toEqual({
      ...query,
      domain: 'example.org',
      disposition: 'bounced,deferred',
    });
  });

  it('are the values of a field', async () => {
    const { datasource, getResource } = newDatasource();
    const range = { from: dateTime(0), to: dateTime(1000), raw: { from: 'now-1h', to: 'now' } };
    const request = {
      targets: [{ refId: 'V', field: '$field', prefix: 'i' }],
      range,
      scopedVars: {},
    } as unknown as DataQueryRequest<ValuesQuery>;
    const variables = datasource.variables as unknown as {
      query: (r: typeof request) => ReturnType<DataSource['query']>;
    };
    const { data } = await lastValueFrom(variables.query(request));
    expect(data).toEqual([
      { text: 'internet', value: 'internet' },
      { text: 'submission', value: 'submission' },
    ]);
    expect(getResource).toHaveBeenCalledWith('values', {
      field: 'class',
      prefix: 'i',
      from: '1970-01-01T00:00:00.000Z',
      to: '1970-01-01T00:00:01.000Z',
    });
  });
});

describe('ad-hoc filters', () => {
  const filters = [{ key: 'class', operator: '!=', value: 'greylist' }];

  it('become terms of the free text', () => {
    const { datasource } = newDatasource();
    expect(datasource.applyTemplateVariables({ ...messages, q: 'code:5xx' }, {}, filters)).toEqual({
      ...messages,
      q: 'code:5xx -class:greylist',
    });
  });

  it('narrow the queue by what the queue knows', () => {
    const { datasource } = newDatasource();
    const queues: QueuesQuery = { refId: 'A', queryType: 'queues' };
    const narrowed = datasource.applyTemplateVariables(queues, {}, [
      ...filters,
      { key: 'connector_out', operator: '=', value: 'internet' },
    ]);
    expect(narrowed).toEqual({ ...queues, connector: 'internet' });
  });

  it('offer keys, and values where there are not too many', async () => {
    const { datasource, getResource } = newDatasource();
    expect(await datasource.getTagKeys()).toContainEqual({ text: 'recipient' });
    expect(await datasource.getTagValues({ key: 'connector_in', filters: [] })).toContainEqual({ text: 'internet' });
    expect(getResource).toHaveBeenCalledWith('values', { field: 'connector' });
    expect(await datasource.getTagValues({ key: 'queue_id', filters: [] })).toEqual([]);
    expect(await datasource.getTagValues({ key: 'disposition', filters: [] })).toContainEqual({ text: 'bounced' });
    expect(getResource).toHaveBeenCalledTimes(1);
  });
});

describe('what is run', () => {
  it('makes a timeline of an exemplar', () => {
    const { datasource } = newDatasource();
    const exemplar: ExemplarQuery = { refId: 'A', queryType: 'traceql', query: '019aaaf2' };
    expect(datasource.applyTemplateVariables(exemplar as unknown as WaybillQuery, {})).toEqual({
      refId: 'A',
      queryType: 'timeline',
      id: '019aaaf2',
      view: '',
    });
  });

  it.each<[string, WaybillQuery, boolean]>([
    ['a search', messages, true],
    ['a hidden query', { ...messages, hide: true }, false],
    ['a timeline of nothing', { refId: 'A', queryType: 'timeline', id: ' ' }, false],
    ['a timeline', { refId: 'A', queryType: 'timeline', id: '$id' }, true],
    ['a type of a later version, so that the backend can say so', { refId: 'A', queryType: 'sql' } as never, true],
  ])('%s', (_, query, want) => {
    expect(newDatasource().datasource.filterQuery(query)).toBe(want);
  });

  it('is numbers by default in an alert rule, and a search elsewhere', () => {
    const { datasource } = newDatasource();
    expect(datasource.getDefaultQuery(CoreApp.UnifiedAlerting).queryType).toBe('aggregate');
    expect(datasource.getDefaultQuery(CoreApp.Explore).queryType).toBe('messages');
  });

  it('is said in words', () => {
    const { datasource } = newDatasource();
    expect(datasource.getQueryDisplayText({ ...messages, recipient: 'a b', q: '-class:dns' })).toBe(
      'messages -class:dns recipient:"a b"'
    );
  });
});

describe('clicks on values', () => {
  const { datasource } = newDatasource();
  const options = { key: 'remote_name', value: 'mx1.example.org' };

  it('toggle a filter', () => {
    const on = datasource.toggleQueryFilter(messages, { type: 'FILTER_FOR', options });
    expect(on).toEqual({ ...messages, q: 'remote_host:mx1.example.org' });
    expect(datasource.queryHasFilter(on, options)).toBe(true);
    expect(datasource.toggleQueryFilter(on, { type: 'FILTER_OUT', options })).toEqual({
      ...messages,
      q: '-remote_host:mx1.example.org',
    });
    expect(datasource.toggleQueryFilter(on, { type: 'FILTER_FOR', options })).toEqual({ ...messages, q: '' });
  });

  it('add a filter', () => {
    expect(datasource.modifyQuery(messages, { type: 'ADD_FILTER', options })).toMatchObject({
      q: 'remote_host:mx1.example.org',
    });
    expect(datasource.modifyQuery(messages, { type: 'ADD_FILTER_OUT', options })).toMatchObject({
      q: '-remote_host:mx1.example.org',
    });
    expect(datasource.modifyQuery(messages, { type: 'SOMETHING', options })).toBe(messages);
    expect(datasource.getSupportedQueryModifications()).toEqual(['ADD_FILTER', 'ADD_FILTER_OUT']);
  });
});

it('annotates with what operators did', () => {
  const { datasource } = newDatasource();
  expect(datasource.annotations?.getDefaultQuery?.()).toMatchObject({ queryType: 'events' });
});
