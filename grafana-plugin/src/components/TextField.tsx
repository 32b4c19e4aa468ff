import React, { KeyboardEvent } from 'react';
import { InlineField, Input } from '@grafana/ui';

interface Props {
  id: string;
  label: string;
  value?: string | number;
  placeholder?: string;
  tooltip?: string;
  width?: number;
  labelWidth?: number;
  grow?: boolean;
  required?: boolean;
  onChange: (value: string) => void;
  /** Called when the value is final: Enter was pressed, or the input was left. */
  onDone: () => void;
}

/** A labelled text input of a query editor. It runs the query when the value is final, not with each letter. */
export function TextField({ id, label, tooltip, grow, labelWidth, onChange, onDone, width, ...input }: Props) {
  return (
    <InlineField label={label} htmlFor={id} tooltip={tooltip} grow={grow} labelWidth={labelWidth ?? 'auto'}>
      <Input
        {...input}
        id={id}
        width={grow ? undefined : width}
        value={input.value ?? ''}
        onChange={(event) => onChange(event.currentTarget.value)}
        onBlur={onDone}
        onKeyDown={(event: KeyboardEvent) => event.key === 'Enter' && onDone()}
      />
    </InlineField>
  );
}
