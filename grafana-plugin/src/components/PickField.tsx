import React from 'react';
import { Combobox, ComboboxOption, InlineField } from '@grafana/ui';

interface Props {
  id: string;
  label: string;
  value?: string;
  options: Array<ComboboxOption<string>> | ((typed: string) => Promise<Array<ComboboxOption<string>>>);
  placeholder?: string;
  tooltip?: string;
  width?: number;
  /** Whether a value that is not offered may be entered: variables, patterns. */
  custom?: boolean;
  onChange: (value: string) => void;
}

/** A labelled picker of one value; empty means any, and shows the placeholder. */
export function PickField({ id, label, value, options, placeholder, tooltip, width = 22, custom, onChange }: Props) {
  return (
    <InlineField label={label} htmlFor={id} tooltip={tooltip}>
      <Combobox
        id={id}
        width={width}
        options={options}
        value={value || null}
        placeholder={placeholder}
        createCustomValue={custom}
        isClearable
        onChange={(option) => onChange(option?.value ?? '')}
      />
    </InlineField>
  );
}
