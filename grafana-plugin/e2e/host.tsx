/**
 * A page that stands in for Grafana: it loads the plugin's production bundle as
 * Grafana's loader does, with the real @grafana libraries, and runs its queries
 * through a server that asks the real backend. Panel plugins, Explore and the
 * logs and trace views are not in those libraries, so it cannot show them.
 */
import * as grafanaData from '@grafana/data';
import {
  applyFieldOverrides,
  cacheFieldDisplayNames,
  CoreApp,
  createTheme,
  DataFrame,
  DataQueryRequest,
  DataQueryResponse,
  DataSourcePlugin,
  dateTime,
  FieldType,
  LoadingState,
  TimeRange,
} from '@grafana/data';
import * as grafanaRuntime from '@grafana/runtime';
import { BackendSrv, BackendSrvRequest, setBackendSrv, setTemplateSrv, TemplateSrv } from '@grafana/runtime';
import { LegendDisplayMode } from '@grafana/schema';
import * as grafanaUI from '@grafana/ui';
import { GlobalStyles, PanelChrome, PortalContainer, ThemeContext, TimeSeries } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import * as React from 'react';
import { ComponentProps, ReactNode, useEffect, useMemo, useState } from 'react';
import { createRoot } from 'react-dom/client';
import * as jsxRuntime from 'react/jsx-runtime';
import * as rxjs from 'rxjs';
import type { DataSource } from '../src/datasource';
import type { WaybillOptions, WaybillQuery, WaybillSecrets } from '../src/types';

type Plugin = DataSourcePlugin<DataSource, WaybillQuery, WaybillOptions, WaybillSecrets>;

const shared: Record<string, unknown> = {
  '@grafana/data': grafanaData,
  '@grafana/runtime': grafanaRuntime,
  '@grafana/ui': grafanaUI,
  react: React,
  'react/jsx-runtime': jsxRuntime,
  rxjs,
  module: { uri: '/plugin/module.js' },
};

/** Loads an AMD module and gives it the shared libraries. */
function load(url: string): Promise<Plugin> {
  return new Promise((resolve, reject) => {
    const define = (...args: unknown[]) => {
      const factory = args.pop() as (...libraries: unknown[]) => { plugin: Plugin };
      const names = args.pop() as string[];
      const missing = names.filter((name) => !(name in shared));
      if (missing.length > 0) {
        reject(new Error(`the bundle wants ${missing.join(', ')}, which Grafana does not share`));
        return;
      }
      resolve(factory(...names.map((name) => shared[name])).plugin);
    };
    define.amd = {};
    Object.assign(window, { define, __grafana_public_path__: '/public/' });
    const script = document.createElement('script');
    script.src = url;
    script.onerror = () => reject(new Error(`${url} cannot be loaded`));
    document.head.appendChild(script);
  });
}

const params = new URLSearchParams(location.search);
const theme = createTheme({ colors: { mode: params.get('theme') === 'light' ? 'light' : 'dark' } });
const from = dateTime(params.get('from') ?? '2026-11-22T06:00:00Z');
const to = dateTime(params.get('to') ?? '2026-11-22T12:00:00Z');
const range: TimeRange = { from, to, raw: { from, to } };

/** Answers the plugin's requests by asking the server of this page. */
async function ask({ url, method, data, params: query }: BackendSrvRequest) {
  const search = query ? `?${new URLSearchParams(query)}` : '';
  const response = await fetch(url + search, { method: method ?? 'GET', body: data && JSON.stringify(data) });
  return { data: await response.json(), ok: response.ok, status: response.status, config: { url } };
}

setTemplateSrv({
  replace: (text?: string) => text ?? '',
  getVariables: () => [],
  containsTemplate: () => false,
  updateTimeRange: () => undefined,
} as TemplateSrv);
setBackendSrv({ fetch: (request: BackendSrvRequest) => rxjs.from(ask(request)) } as unknown as BackendSrv);

class Boundary extends React.Component<{ children: ReactNode }, { error?: Error }> {
  state: { error?: Error } = {};
  static getDerivedStateFromError(error: Error) {
    return { error };
  }
  render() {
    return this.state.error ? <pre>{this.state.error.stack}</pre> : this.props.children;
  }
}

const WIDTH = 1400;

function Panel({
  title,
  height,
  children,
}: {
  title: string;
  height: number;
  children: (w: number, h: number) => ReactNode;
}) {
  return (
    <div style={{ marginBottom: 12 }}>
      <PanelChrome title={title} width={WIDTH} height={height} loadingState={LoadingState.Done}>
        {(w, h) => <Boundary>{children(w, h)}</Boundary>}
      </PanelChrome>
    </div>
  );
}

function Box({ children }: { children: ReactNode }) {
  return (
    <div style={{ width: WIDTH, padding: 12, marginBottom: 12, background: theme.colors.background.primary }}>
      <Boundary>{children}</Boundary>
    </div>
  );
}

function prepare(frames: DataFrame[]): DataFrame[] {
  const prepared = applyFieldOverrides({
    data: frames.map((frame) => ({
      ...frame,
      fields: frame.fields
        .filter((field) => !field.config.custom?.hidden && field.type !== FieldType.other)
        .map((field) => ({
          ...field,
          config: {
            ...field.config,
            custom: { lineWidth: 1, fillOpacity: 10, ...field.config.custom },
            color: field.config.color ?? ({ mode: 'palette-classic' } as never),
          },
        })),
    })),
    fieldConfig: { defaults: { custom: {} }, overrides: [] },
    replaceVariables: (value) => value,
    theme,
    timeZone: 'utc',
  });
  cacheFieldDisplayNames(prepared);
  return prepared;
}

const TABLE = { enableVirtualization: false, noHeader: false, getActions: () => [] };

function View({ frames, height }: { frames: DataFrame[]; height: number }) {
  const [first] = frames;
  if (!first) {
    return null;
  }
  if (first.meta?.type === grafanaData.DataFrameType.TimeSeriesMulti) {
    return (
      <Panel title="Time series" height={height}>
        {(w, h) => (
          <TimeSeries
            frames={prepare(frames)}
            width={w}
            height={h}
            timeRange={range}
            timeZone="utc"
            structureRev={1}
            legend={{ showLegend: true, displayMode: LegendDisplayMode.List, placement: 'bottom', calcs: [] }}
          />
        )}
      </Panel>
    );
  }
  return (
    <Panel title={`Table: ${first.name}`} height={height}>
      {(w, h) => (
        <TableNG
          {...({ ...TABLE, data: prepare([first])[0], width: w, height: h } as ComponentProps<typeof TableNG>)}
        />
      )}
    </Panel>
  );
}

function QueryPage({ plugin, initial, height }: { plugin: Plugin; initial: Partial<WaybillQuery>; height: number }) {
  const datasource = useDatasource(plugin);
  const { QueryEditor } = plugin.components;
  const [query, setQuery] = useState({ refId: 'A', ...initial } as WaybillQuery);
  const [answer, setAnswer] = useState<DataQueryResponse>();
  const [runs, setRuns] = useState(0);
  useEffect(() => {
    const request = {
      app: CoreApp.Explore,
      requestId: 'Q1',
      targets: [query],
      range,
      interval: '15m',
      intervalMs: 900_000,
      maxDataPoints: 100,
      scopedVars: {},
      timezone: 'utc',
      startTime: 0,
    } as DataQueryRequest<WaybillQuery>;
    const subscription = datasource.query(request).subscribe(setAnswer);
    return () => subscription.unsubscribe();
    // A query runs when the editor says so, as in Grafana.
    // eslint-disable-next-line react-hooks/exhaustive-deps
  }, [datasource, runs]);
  const errors = answer?.errors ?? [];
  return (
    <>
      <Box>
        {QueryEditor && (
          <QueryEditor
            datasource={datasource}
            query={query}
            onChange={setQuery}
            onRunQuery={() => setRuns((n) => n + 1)}
            range={range}
          />
        )}
      </Box>
      {errors.map((error) => (
        <Box key={error.refId}>{error.message}</Box>
      ))}
      {answer && <View frames={answer.data as DataFrame[]} height={height} />}
    </>
  );
}

function useDatasource(plugin: Plugin): DataSource {
  return useMemo(
    () =>
      new plugin.DataSourceClass({
        id: 1,
        uid: 'waybill',
        type: 'waybill-mail-datasource',
        name: 'Waybill',
        jsonData: {},
        meta: {},
        readOnly: false,
        access: 'proxy',
      } as never),
    [plugin]
  );
}

function ConfigPage({ plugin }: { plugin: Plugin }) {
  type Props = ComponentProps<NonNullable<typeof plugin.components.ConfigEditor>>;
  const { ConfigEditor } = plugin.components;
  const [options, setOptions] = useState({
    url: 'http://127.0.0.1:8025',
    jsonData: { tlsSkipVerify: true, tlsAuthWithCACert: true },
    secureJsonFields: { token: true },
    secureJsonData: {},
  } as unknown as Props['options']);
  return <Box>{ConfigEditor && <ConfigEditor options={options} onOptionsChange={setOptions} />}</Box>;
}

const MESSAGE = '01KANF5M80AAAAAAAAAAAAAAAB';

const PAGES: Record<string, (plugin: Plugin) => ReactNode> = {
  config: (plugin) => <ConfigPage plugin={plugin} />,
  messages: (plugin) => (
    <QueryPage plugin={plugin} height={360} initial={{ queryType: 'messages', sort: '-time', limit: 100 }} />
  ),
  filters: (plugin) => (
    <QueryPage
      plugin={plugin}
      height={240}
      initial={{
        queryType: 'messages',
        rows: 'recipients',
        recipient: '*@example.org',
        disposition: 'bounced,deferred',
        class: 'greylist',
        q: '-code:4xx',
      }}
    />
  ),
  timeline: (plugin) => (
    <QueryPage plugin={plugin} height={340} initial={{ queryType: 'timeline', id: MESSAGE, view: 'facts' }} />
  ),
  stages: (plugin) => (
    <QueryPage plugin={plugin} height={760} initial={{ queryType: 'timeline', id: MESSAGE, view: 'stages' }} />
  ),
  attempts: (plugin) => (
    <QueryPage plugin={plugin} height={240} initial={{ queryType: 'timeline', id: MESSAGE, view: 'attempts' }} />
  ),
  checks: (plugin) => (
    <QueryPage plugin={plugin} height={340} initial={{ queryType: 'timeline', id: MESSAGE, view: 'checks' }} />
  ),
  transcript: (plugin) => (
    <QueryPage plugin={plugin} height={520} initial={{ queryType: 'timeline', id: MESSAGE, view: 'transcript' }} />
  ),
  series: (plugin) => (
    <QueryPage
      plugin={plugin}
      height={360}
      initial={{ queryType: 'aggregate', metric: 'count', by: 'disposition', step: 'auto' }}
    />
  ),
  groups: (plugin) => (
    <QueryPage
      plugin={plugin}
      height={260}
      initial={{
        queryType: 'aggregate',
        metric: 'latency_p95',
        by: 'recipient_domain,class',
        step: 'total',
        view: 'table',
      }}
    />
  ),
  percentiles: (plugin) => (
    <QueryPage
      plugin={plugin}
      height={360}
      initial={{ queryType: 'aggregate', metric: 'latency_p50,latency_p95,latency_p99', by: '', step: 'auto' }}
    />
  ),
  spread: (plugin) => (
    <QueryPage
      plugin={plugin}
      height={260}
      initial={{
        queryType: 'aggregate',
        metric: 'latency_p50,latency_p99',
        by: 'recipient_domain',
        step: 'total',
        view: 'table',
      }}
    />
  ),
  queues: (plugin) => <QueryPage plugin={plugin} height={280} initial={{ queryType: 'queues' }} />,
  events: (plugin) => (
    <QueryPage plugin={plugin} height={460} initial={{ queryType: 'events', sort: '-time', limit: 200 }} />
  ),
};

load('/plugin/module.js')
  .then((plugin) => {
    const page = PAGES[params.get('page') ?? 'messages'];
    createRoot(document.getElementById('root')!).render(
      <ThemeContext.Provider value={theme}>
        <GlobalStyles />
        <div style={{ padding: 12, width: WIDTH + 24 }}>{page(plugin)}</div>
        <PortalContainer />
      </ThemeContext.Provider>
    );
  })
  .catch((error) => console.error(error));
