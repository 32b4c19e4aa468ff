import { CustomVariableSupport, DataQueryRequest, DataQueryResponse } from '@grafana/data';
import { getTemplateSrv } from '@grafana/runtime';
import { from, Observable } from 'rxjs';
import { VariableQueryEditor } from './components/VariableQueryEditor';
import type { DataSource } from './datasource';
import { ValuesQuery } from './types';

/** A dashboard's variables: the values of a field. Field and prefix may hold variables themselves. */
export class WaybillVariables extends CustomVariableSupport<DataSource, ValuesQuery> {
  editor = VariableQueryEditor;

  constructor(private readonly datasource: DataSource) {
    super();
  }

  query(request: DataQueryRequest<ValuesQuery>): Observable<DataQueryResponse> {
    return from(this.values(request));
  }

  private async values({ targets, scopedVars, range }: DataQueryRequest<ValuesQuery>): Promise<DataQueryResponse> {
    const replace = (text?: string) => getTemplateSrv().replace(text ?? '', scopedVars);
    const field = replace(targets[0]?.field);
    if (!field) {
      return { data: [] };
    }
    const values = await this.datasource.getValues(field, replace(targets[0].prefix), range);
    return { data: values.map((text) => ({ text, value: text })) };
  }
}
