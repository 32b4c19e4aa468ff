import { addTerm, adhocTerms, filterKey, hasTerm, removeTerm, term, terms, words } from './filters';

describe('terms of the free text', () => {
  it.each([
    ['plain', 'class', 'greylist', false, 'class:greylist'],
    ['negated', 'class', 'greylist', true, '-class:greylist'],
    ['with spaces', 'remote_host', 'a b', false, 'remote_host:"a b"'],
    ['with quotes', 'auth_user', 'a"b\\', false, 'auth_user:"a\\"b\\\\"'],
    ['of a column', 'recipients', 'ada@example.org', false, 'recipient:ada@example.org'],
  ])('%s', (_, key, value, negated, want) => {
    expect(term(key, value, negated)).toBe(want);
    expect(terms(want)).toEqual([want]);
  });

  it('are separated by spaces outside quotes', () => {
    expect(terms('  a:1  -b:"x y" c:"q\\"r s"')).toEqual(['a:1', '-b:"x y"', 'c:"q\\"r s"']);
    expect(terms(undefined)).toEqual([]);
  });

  it('are added once, in the place of their opposite, and removed', () => {
    expect(addTerm('a:1', 'b:2')).toBe('a:1 b:2');
    expect(addTerm('a:1 b:2', 'b:2')).toBe('a:1 b:2');
    expect(addTerm('-b:2 a:1', 'b:2')).toBe('a:1 b:2');
    expect(addTerm('b:2', '-b:2')).toBe('-b:2');
    expect(hasTerm('a:1 b:2', 'b:2')).toBe(true);
    expect(hasTerm('a:1 -b:2', 'b:2')).toBe(false);
    expect(removeTerm('a:1 b:2', 'a:1')).toBe('b:2');
  });
});

describe('ad-hoc filters', () => {
  it.each([
    ['=', 'example.org', undefined, 'domain:example.org'],
    ['!=', 'example.org', undefined, '-domain:example.org'],
    ['=|', 'a', ['a', 'b'], 'domain:a,b'],
    ['!=|', 'a', ['a', 'b'], '-domain:a,b'],
    ['=~', '.*\\.example\\.org', undefined, 'domain:*.example.org'],
    ['!~', '^example.*$', undefined, '-domain:example*'],
  ])('%s %s', (operator, value, values, want) => {
    expect(adhocTerms([{ key: 'domain', operator, value, values }])).toEqual([want]);
  });

  it.each([
    ['>', '5'],
    ['=~', '(a|b)'],
  ])('refuse %s %s rather than ignore it', (operator, value) => {
    expect(() => adhocTerms([{ key: 'domain', operator, value }])).toThrow(/Waybill/);
  });
});

it('knows the filters of columns', () => {
  expect(filterKey('connector_out')).toBe('connector');
  expect(filterKey('class')).toBe('class');
});

it('reads words', () => {
  expect(words(' a, b ,,c')).toEqual(['a', 'b', 'c']);
  expect(words()).toEqual([]);
});
