import { AdHocVariableFilter } from '@grafana/data';
import { Filter } from './types';

/** One input of the builder. */
export interface FilterField {
  key: keyof Filter;
  label: string;
  placeholder: string;
  tooltip: string;
  /** Whether values are offered from what the relay has seen. */
  suggest?: boolean;
  /** Whether it is behind "More filters". */
  more?: boolean;
  width: number;
}

const ADDRESS = 'An exact address, @domain, or a pattern with *, such as *@*.example.com for sub-domains';

/** The inputs of the builder, in their order. `disposition`, `event` and `q` have inputs of their own. */
export const FILTER_FIELDS: FilterField[] = [
  { key: 'sender', label: 'Sender', placeholder: 'app@example.com', tooltip: ADDRESS, width: 26 },
  { key: 'recipient', label: 'Recipient', placeholder: '*@example.org', tooltip: ADDRESS, width: 26 },
  {
    key: 'domain',
    label: 'Domain',
    placeholder: 'any',
    tooltip: 'Domain of the recipients',
    suggest: true,
    width: 22,
  },
  {
    key: 'connector',
    label: 'Connector',
    placeholder: 'any',
    tooltip: 'A receive or send connector',
    suggest: true,
    width: 20,
  },
  {
    key: 'queue_id',
    label: 'Queue ID',
    placeholder: '01KANF5M80…',
    tooltip: 'A queue ID, or its first 6 characters or more',
    width: 26,
  },
  {
    key: 'message_id',
    label: 'Message-ID',
    placeholder: '<…@example.com>',
    tooltip: 'The header field, with or without its angle brackets',
    more: true,
    width: 30,
  },
  {
    key: 'remote_host',
    label: 'Remote host',
    placeholder: 'mx1.example.org',
    tooltip: 'The next hop of an attempt: name, pattern or address',
    more: true,
    suggest: true,
    width: 26,
  },
  {
    key: 'queue',
    label: 'Next hop',
    placeholder: 'any',
    tooltip: 'The queue that a recipient waits in',
    more: true,
    suggest: true,
    width: 24,
  },
  {
    key: 'class',
    label: 'Class',
    placeholder: 'any',
    tooltip: 'Class of the failure, such as greylist or invalid_recipient',
    more: true,
    suggest: true,
    width: 22,
  },
  {
    key: 'code',
    label: 'Code',
    placeholder: '550, 5.1.1, 5xx',
    tooltip: 'Reply code, enhanced code, or 5xx for all of a kind',
    more: true,
    width: 18,
  },
  {
    key: 'client_ip',
    label: 'Client',
    placeholder: '192.0.2.0/24',
    tooltip: 'Address or range of the client',
    more: true,
    width: 22,
  },
  {
    key: 'auth_user',
    label: 'User',
    placeholder: 'any',
    tooltip: 'The user that logged in',
    more: true,
    suggest: true,
    width: 20,
  },
  {
    key: 'min_latency',
    label: 'Latency over',
    placeholder: '90s',
    tooltip: 'From accepted to final, or to now',
    more: true,
    width: 14,
  },
  {
    key: 'max_latency',
    label: 'Latency up to',
    placeholder: '10m',
    tooltip: 'From accepted to final, or to now',
    more: true,
    width: 14,
  },
  { key: 'min_size', label: 'Size from', placeholder: '10MiB', tooltip: 'Octets of content', more: true, width: 14 },
  { key: 'max_size', label: 'Size up to', placeholder: '36MiB', tooltip: 'Octets of content', more: true, width: 14 },
  {
    key: 'subject',
    label: 'Subject',
    placeholder: '*invoice*',
    tooltip: 'All of the subject, or a pattern with *; all of it only where hashes are kept',
    more: true,
    width: 26,
  },
  {
    key: 'reason',
    label: 'Reason',
    placeholder: 'any',
    tooltip: 'Why something was refused',
    more: true,
    suggest: true,
    width: 22,
  },
  {
    key: 'provider',
    label: 'Provider',
    placeholder: 'any',
    tooltip: 'The provider of the next hop',
    more: true,
    suggest: true,
    width: 20,
  },
  {
    key: 'session_id',
    label: 'Session',
    placeholder: '01KANF5M80…',
    tooltip: 'The ID of an SMTP session, inbound or outbound',
    more: true,
    width: 30,
  },
  {
    key: 'node',
    label: 'Node',
    placeholder: 'any',
    tooltip: 'The relay, or the server whose log was imported',
    more: true,
    suggest: true,
    width: 22,
  },
  {
    key: 'source',
    label: 'Source',
    placeholder: 'queue, import',
    tooltip: 'The part of the relay that stated a fact; import: the log of another server',
    more: true,
    width: 18,
  },
  {
    key: 'external_id',
    label: 'External ID',
    placeholder: '4Xyz…',
    tooltip: 'The queue ID in the imported log of another server',
    more: true,
    width: 22,
  },
];

/** Every key of a filter. */
export const FILTER_KEYS: Array<keyof Filter> = ['q', ...FILTER_FIELDS.map(({ key }) => key), 'disposition', 'event'];

/** The keys whose values are bounds. */
const RANGES = new Set<string>(['min_latency', 'max_latency', 'min_size', 'max_size']);

/** The keys that an ad-hoc filter can have: all but the free text. */
export const ADHOC_KEYS: string[] = [
  ...FILTER_FIELDS.filter(({ key }) => !RANGES.has(key)).map(({ key }) => key),
  'disposition',
  'event',
];

/** The keys whose values are too many to offer. */
export const UNLISTED = new Set([
  ...RANGES,
  'queue_id',
  'message_id',
  'session_id',
  'subject',
  'source',
  'external_id',
]);

export const DISPOSITIONS = ['queued', 'deferred', 'held', 'relayed', 'bounced', 'expired', 'dropped', 'moved'];

/** The words of a comma-separated value. */
export function words(value?: string): string[] {
  return (value ?? '')
    .split(',')
    .map((word) => word.trim())
    .filter((word) => word !== '');
}

/** Names of columns and labels that differ from the filter they belong to. */
const SAME_AS: Record<string, keyof Filter> = {
  recipients: 'recipient',
  recipient_domain: 'domain',
  mail_from: 'sender',
  connector_in: 'connector',
  connector_out: 'connector',
  remote_name: 'remote_host',
  remote_ip: 'remote_host',
  header_message_id: 'message_id',
};

/** The filter that a column or a label of a log line belongs to. */
export function filterKey(name: string): string {
  return SAME_AS[name] ?? name;
}

/** One term of the free text: `key:value`, or `-key:value` to leave out. */
export function term(key: string, value: string, negated = false): string {
  const plain = /^[^\s"\\()]+$/.test(value);
  const quoted = plain ? value : `"${value.replace(/(["\\])/g, '\\$1')}"`;
  return `${negated ? '-' : ''}${filterKey(key)}:${quoted}`;
}

/** Splits the free text into its terms; spaces within quotes do not separate. */
export function terms(q?: string): string[] {
  return (q ?? '').match(/(?:"(?:\\.|[^"\\])*"|[^\s"])+/g) ?? [];
}

export function hasTerm(q: string | undefined, wanted: string): boolean {
  return terms(q).includes(wanted);
}

/** Adds a term once, in the place of its opposite. */
export function addTerm(q: string | undefined, wanted: string): string {
  const opposite = wanted.startsWith('-') ? wanted.slice(1) : `-${wanted}`;
  return [...terms(q).filter((t) => t !== wanted && t !== opposite), wanted].join(' ');
}

export function removeTerm(q: string | undefined, unwanted: string): string {
  return terms(q)
    .filter((t) => t !== unwanted)
    .join(' ');
}

/** Turns a dashboard's ad-hoc filters into terms. */
export function adhocTerms(filters: AdHocVariableFilter[] = []): string[] {
  return filters
    .filter(({ key }) => key !== '')
    .map(({ key, operator, value, values }) => {
      switch (operator) {
        case '=':
          return term(key, value);
        case '!=':
          return term(key, value, true);
        case '=|':
          return term(key, (values ?? [value]).join(','));
        case '!=|':
          return term(key, (values ?? [value]).join(','), true);
        case '=~':
          return term(key, pattern(key, value));
        case '!~':
          return term(key, pattern(key, value), true);
        default:
          throw new Error(`Waybill has no filter "${key} ${operator} ${value}": use =, != or a pattern`);
      }
    });
}

/** Grafana's pattern is a regular expression; Waybill has "*". What cannot be said with it is refused. */
function pattern(key: string, expression: string): string {
  const simple = expression
    .replace(/^\^|\$$/g, '')
    .replace(/\.[*+]/g, '*')
    .replace(/\\\./g, '.');
  if (/[\\^$|?+()[\]{}]/.test(simple)) {
    throw new Error(`Waybill cannot match ${key} with the expression "${expression}": only .* and plain text`);
  }
  return simple;
}
