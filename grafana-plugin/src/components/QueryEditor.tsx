import React from 'react';
import { QueryEditorProps } from '@grafana/data';
import { Alert, InlineField, RadioButtonGroup, Stack, Text } from '@grafana/ui';
import { DataSource } from '../datasource';
import { changeType, isKnown, kindOf, normalize, QUERIES, QUERY_TYPES } from '../queries';
import { WaybillOptions, WaybillQuery } from '../types';

type Props = QueryEditorProps<DataSource, WaybillQuery, WaybillOptions>;

const TYPES = QUERY_TYPES.map((value) => ({
  value,
  label: QUERIES[value].label,
  description: QUERIES[value].description,
}));

/** Chooses the query type, and shows the editor that the table has for it. */
export function QueryEditor({ datasource, query: given, onChange, onRunQuery }: Props) {
  const query = normalize(given);
  const known = isKnown(query);
  const { Editor, description } = known ? kindOf(query) : { Editor: undefined, description: '' };
  return (
    <Stack direction="column" gap={0.5}>
      <Stack alignItems="center" wrap="wrap">
        <InlineField label="Query">
          <RadioButtonGroup
            options={TYPES}
            value={query.queryType}
            onChange={(type) => {
              onChange(changeType(query, type));
              onRunQuery();
            }}
          />
        </InlineField>
        <Text color="secondary" variant="bodySmall">
          {description}
        </Text>
      </Stack>
      {Editor ? (
        <Editor datasource={datasource} query={query} onChange={onChange} onRunQuery={onRunQuery} />
      ) : (
        <Alert severity="warning" title={`This version does not know the query type "${query.queryType}"`}>
          Choose one of the types above, or update the plugin.
        </Alert>
      )}
    </Stack>
  );
}
