import React from 'react';
import { ComboboxOption, InlineField, MultiCombobox } from '@grafana/ui';
import { words } from '../filters';

interface Props {
  id: string;
  label: string;
  value?: string;
  options: Array<ComboboxOption<string>>;
  placeholder?: string;
  tooltip?: string;
  width?: number;
  /** The most words that make sense; the last chosen ones stay. */
  most?: number;
  onChange: (value: string) => void;
}

/** A labelled picker of several words, which the query keeps as one string with commas. */
export function WordsField({ id, label, value, options, placeholder, tooltip, width = 30, most, onChange }: Props) {
  const chosen = words(value);
  const known = [
    ...options,
    ...chosen.filter((word) => !options.some((option) => option.value === word)).map((word) => ({ value: word })),
  ];
  return (
    <InlineField label={label} htmlFor={id} tooltip={tooltip}>
      <MultiCombobox
        id={id}
        width={width}
        options={known}
        value={chosen}
        placeholder={placeholder}
        createCustomValue
        onChange={(picked) => {
          const next = picked.map((option) => option.value);
          onChange((most ? next.slice(-most) : next).join(','));
        }}
      />
    </InlineField>
  );
}
