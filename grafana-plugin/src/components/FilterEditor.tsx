import React, { useState } from 'react';
import { Button, InlineFieldRow, Stack } from '@grafana/ui';
import { DISPOSITIONS, FILTER_FIELDS, FilterField } from '../filters';
import { EditorProps } from '../queries';
import { FilteredQuery } from '../types';
import { PickField } from './PickField';
import { TextField } from './TextField';
import { WordsField } from './WordsField';

const toOptions = (values: string[]) => values.map((value) => ({ value }));

/** The builder's filters, for every query type that has them: the usual ones, the rest on demand, and free text. */
export function FilterEditor<Q extends FilteredQuery>({ datasource, query, onChange, onRunQuery }: EditorProps<Q>) {
  const [opened, setOpened] = useState(false);
  const more = FILTER_FIELDS.filter((field) => field.more);
  const open = opened || more.some(({ key }) => query[key]);
  const id = (name: string) => `waybill-${query.refId}-${name}`;
  const change = (key: string, value: string) => onChange({ ...query, [key]: value || undefined });
  const changeAndRun = (key: string, value: string) => {
    change(key, value);
    onRunQuery();
  };

  const field = ({ key, label, placeholder, tooltip, suggest, width }: FilterField) =>
    suggest ? (
      <PickField
        key={key}
        id={id(key)}
        label={label}
        value={query[key]}
        placeholder={placeholder}
        tooltip={tooltip}
        width={width}
        custom
        options={(typed) =>
          datasource
            .getValues(key, typed)
            .then(toOptions)
            .catch(() => [])
        }
        onChange={(value) => changeAndRun(key, value)}
      />
    ) : (
      <TextField
        key={key}
        id={id(key)}
        label={label}
        value={query[key]}
        placeholder={placeholder}
        tooltip={tooltip}
        width={width}
        onChange={(value) => change(key, value)}
        onDone={onRunQuery}
      />
    );

  return (
    <Stack direction="column" gap={0.5}>
      <InlineFieldRow>
        {FILTER_FIELDS.filter((f) => !f.more).map(field)}
        <WordsField
          id={id('disposition')}
          label="Disposition"
          value={query.disposition}
          placeholder="any"
          width={36}
          tooltip="What became of a recipient"
          options={toOptions(DISPOSITIONS)}
          onChange={(value) => changeAndRun('disposition', value)}
        />
      </InlineFieldRow>
      {open && <InlineFieldRow>{more.map(field)}</InlineFieldRow>}
      <InlineFieldRow>
        <TextField
          id={id('q')}
          label="Filter text"
          value={query.q}
          placeholder="recipient:*@example.org disposition:bounced -class:greylist"
          tooltip='Any filters as one string: key:value, "-" before a key leaves out. Added to the filters above.'
          grow
          onChange={(value) => change('q', value)}
          onDone={onRunQuery}
        />
        <Button
          variant="secondary"
          fill="text"
          icon={open ? 'angle-up' : 'angle-down'}
          aria-expanded={open}
          disabled={open && !opened}
          onClick={() => setOpened(!opened)}
        >
          {open ? 'Fewer filters' : 'More filters'}
        </Button>
      </InlineFieldRow>
    </Stack>
  );
}
