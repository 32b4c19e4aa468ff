import { DataSourcePlugin } from '@grafana/data';
import { ConfigEditor } from './components/ConfigEditor';
import { QueryEditor } from './components/QueryEditor';
import { DataSource } from './datasource';
import { WaybillOptions, WaybillQuery, WaybillSecrets } from './types';

export const plugin = new DataSourcePlugin<DataSource, WaybillQuery, WaybillOptions, WaybillSecrets>(DataSource)
  .setConfigEditor(ConfigEditor)
  .setQueryEditor(QueryEditor);
