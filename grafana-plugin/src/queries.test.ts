import fs from 'fs';
import path from 'path';
import { changeType, isKnown, kindOf, normalize, QUERIES, QUERY_TYPES } from './queries';
import { MessagesQuery, WaybillQuery } from './types';

const FOLDER = path.join(__dirname, '..', 'testdata', 'queries');
const files = fs.readdirSync(FOLDER).filter((name) => name.endsWith('.json'));
const read = (name: string): WaybillQuery => JSON.parse(fs.readFileSync(path.join(FOLDER, name), 'utf8'));

describe('the contract with the backend', () => {
  it.each(files)('%s is a complete query of a known type', (name) => {
    const query = normalize(read(name));
    expect(isKnown(query)).toBe(true);
    expect(kindOf(query).isComplete(query)).toBe(true);
    expect(kindOf(query).text(query)).not.toContain('undefined');
  });

  it('has a query of each type', () => {
    expect(new Set(files.map((name) => normalize(read(name)).queryType))).toEqual(new Set(QUERY_TYPES));
  });

  it.each(files.filter((name) => name !== 'exemplar.json'))('%s passes unchanged', (name) => {
    expect(normalize(read(name))).toEqual(read(name));
  });
});

describe('normalize', () => {
  it("makes a timeline of an exemplar's query", () => {
    expect(normalize({ refId: 'A', queryType: 'traceql', query: 'uid-1' })).toEqual({
      refId: 'A',
      queryType: 'timeline',
      id: 'uid-1',
      view: '',
    });
  });

  it('makes a search of a query without a type', () => {
    expect(normalize({ refId: 'A' })).toEqual({ refId: 'A', queryType: 'messages', ...QUERIES.messages.defaults });
  });
});

describe('changeType', () => {
  const messages: MessagesQuery = { refId: 'A', queryType: 'messages', recipient: 'ada@example.org', limit: 7 };

  it('keeps the filters between types that have them', () => {
    expect(changeType(messages, 'aggregate')).toMatchObject({
      refId: 'A',
      queryType: 'aggregate',
      metric: 'count',
      recipient: 'ada@example.org',
    });
  });

  it('drops them otherwise', () => {
    expect(changeType(messages, 'queues')).toEqual({ refId: 'A', queryType: 'queues' });
  });
});
