package event

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"waybill/relay/mail"
)

var compare = cmp.Options{cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()}

// fill sets every field of v to something, so that a field that the codec forgets shows.
func fill(v reflect.Value, rng *rand.Rand) {
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = time.UnixMicro(1_800_000_000_000_000 + rng.Int64N(1e15)).UTC()
		return
	case *netip.Addr:
		*x = netip.AddrFrom4([4]byte{192, 0, 2, byte(rng.IntN(256))})
		return
	case *Seconds:
		*x = Seconds(time.Duration(rng.Int64N(1e12)) * time.Microsecond)
		return
	case *mail.Disposition:
		*x = mail.Disposition(1 + rng.IntN(8))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for _, f := range v.Fields() {
			fill(f, rng)
		}
	case reflect.String:
		texts := []string{"a", "two words", "quote\" back\\slash", "é漢", "<tag>&", "line\u2028sep", "ctl\x01\x7f\r\n"}
		v.SetString(texts[rng.IntN(len(texts))])
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), rng)
		}
	case reflect.Bool:
		v.SetBool(true)
	default:
		if v.CanInt() {
			v.SetInt(1 + rng.Int64N(1e6))
		} else {
			v.SetUint(1 + rng.Uint64N(60000))
		}
	}
}

// full returns a record of each fact with every field set.
func full(seed uint64) []Record {
	rng := rand.New(rand.NewPCG(seed, 1))
	var recs []Record
	for _, row := range table {
		v := reflect.New(reflect.TypeOf(row.event))
		fill(v.Elem(), rng)
		r := NewEmitter("n1").Source(SourceQueue).Config("c1").Session("s1").Message("q1", "u1").Stamp(v.Elem().Interface().(Event))
		recs = append(recs, r)
	}
	return recs
}

func TestRoundTrip(t *testing.T) {
	for seed := range uint64(20) {
		for _, r := range full(seed) {
			line, err := r.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			var got Record
			if err := json.Unmarshal(line, &got); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			if d := cmp.Diff(r, got, compare); d != "" {
				t.Errorf("%s: round trip (-want +got):\n%s", Name(r.Event), d)
			}
		}
	}
}

func TestZeroRoundTrip(t *testing.T) {
	for _, row := range table {
		r := Record{ID: mail.NewID(time.Now()), Time: time.UnixMicro(1).UTC(), Event: row.event}
		line, err := r.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var got Record
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if d := cmp.Diff(r, got, compare); d != "" {
			t.Errorf("%s: round trip (-want +got):\n%s", Name(r.Event), d)
		}
	}
}

// TestFieldsAreTheJSON holds AppendFields and the JSON form together: same
// names, same order of magnitude, same omissions.
func TestFieldsAreTheJSON(t *testing.T) {
	check := func(r Record) {
		line, err := r.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var want map[string]any
		if err := json.Unmarshal(line, &want); err != nil {
			t.Fatal(err)
		}
		items := 0
		var object func(fields []Field) map[string]any
		object = func(fields []Field) map[string]any {
			got := map[string]any{}
			for _, f := range fields {
				if _, twice := got[f.Key]; twice {
					t.Errorf("%s: key %s twice", Name(r.Event), f.Key)
				}
				switch f.Kind {
				case String:
					got[f.Key] = f.Str
				case Int:
					got[f.Key] = float64(f.Int)
				case Float:
					got[f.Key] = f.Float
				case Time:
					got[f.Key] = f.Time.Format(time.RFC3339Nano)
				case Bool:
					got[f.Key] = f.Int == 1
				case Object:
					var list any // null, as long as there is nothing in it
					for _, item := range f.List() {
						sofar, _ := list.([]any)
						list = append(sofar, object(item))
						items++
					}
					got[f.Key] = list
				}
			}
			return got
		}
		got := object(r.AppendFields(nil))
		if n := Items(r.Event); n != items {
			t.Errorf("%s: Items() = %d, want %d", Name(r.Event), n, items)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: fields differ from JSON (-json +fields):\n%s", Name(r.Event), d)
		}
	}
	for _, r := range full(7) {
		check(r)
	}
	for _, row := range table {
		check(Record{ID: "x", Time: time.UnixMicro(5).UTC(), Event: row.event})
	}
}

// TestTableIsComplete compares the table with the methods named fact in the source.
func TestTableIsComplete(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "facts.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, d := range file.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Name.Name != "fact" {
			continue
		}
		n++
		name := snake(fn.Recv.List[0].Type.(*ast.Ident).Name)
		if byName[name] == nil {
			t.Errorf("fact %s is not in the table of codec.go", name)
		}
	}
	if n != len(table) {
		t.Errorf("table has %d rows, facts.go has %d facts", len(table), n)
	}
}

func TestNames(t *testing.T) {
	for _, test := range []struct{ name, want string }{
		{"MessageQueued", "message_queued"},
		{"DSNQueued", "dsn_queued"},
		{"TLSNegotiated", "tls_negotiated"},
		{"DNSAnswered", "dns_answered"},
	} {
		if got := snake(test.name); got != test.want {
			t.Errorf("snake(%s) = %s, want %s", test.name, got, test.want)
		}
	}
}

// TestFieldsLeaveTheLogItsKeys keeps the names free that the log puts beside a record.
func TestFieldsLeaveTheLogItsKeys(t *testing.T) {
	for _, name := range Names() {
		for _, field := range FieldNames(name) {
			switch field {
			case "level", "msg", "ts", "event_id", "schema", "event", "node", "source", "config_rev", "session_id", "queue_id", "message_uid":
				t.Errorf("%s has a field named %s", name, field)
			}
		}
	}
}

func TestUnknownEvent(t *testing.T) {
	var r Record
	err := json.Unmarshal([]byte(`{"ts":"2026-01-01T00:00:00Z","event_id":"x","schema":1,"event":"cat_fed"}`), &r)
	if err == nil || !strings.Contains(err.Error(), "unknown event") {
		t.Errorf("Unmarshal = %v, want unknown event", err)
	}
}

func FuzzRecord(f *testing.F) {
	for _, r := range full(3) {
		line, err := r.MarshalJSON()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var r Record
		if json.Unmarshal(line, &r) != nil {
			return
		}
		once, err := r.MarshalJSON()
		if err != nil {
			t.Skip() // a time outside the years that RFC 3339 can write
		}
		if !utf8.Valid(once) || strings.ContainsAny(string(once), "\n\r\x00") {
			t.Fatalf("line holds control characters: %q", once)
		}
		var again Record
		if err := json.Unmarshal(once, &again); err != nil {
			t.Fatalf("own line does not parse: %v\n%s", err, once)
		}
		if d := cmp.Diff(r, again, compare); d != "" {
			t.Fatalf("second round differs:\n%s", d)
		}
	})
}

// BenchmarkMarshal writes the five facts of a message that is relayed at once.
func BenchmarkMarshal(b *testing.B) {
	info := Info{MailFrom: "orders@shop.example", HeaderMessageID: "<01m80qs10peqnb3ep7a731bcd9@shop.example>", HeaderFrom: "orders@shop.example", Size: 10240, ConnectorIn: "apps", ClientIP: netip.MustParseAddr("192.0.2.7"), Priority: "normal"}
	hop := Hop{ConnectorOut: "internet", Queue: "example.com", Provider: "other", RemoteName: "mx1.example.com", RemoteIP: netip.MustParseAddr("198.51.100.9"), RemotePort: 25}
	answer := Answer{Code: 250, Enhanced: "2.0.0", Reply: "Ok: queued as 4Xk2f91Tz", Verb: "."}
	final := Final{Info: info, Hop: hop, Answer: answer, Recipient: "ann@example.com", Attempts: 1, TTotal: Secs(28 * time.Millisecond)}
	to := []Recipient{{Address: "ann@example.com", Disposition: mail.Relayed, Code: 250, Enhanced: "2.0.0", Reply: "Ok: queued as 4Xk2f91Tz"}}
	e := NewEmitter("mx1.example.com").Source(SourceQueue).Config("a1b2c3d4e5f6").Message("01M80QS10Q7RA48WHQSAHV9QC9", "0197f0c2-0000-7000-8000-000000000000")
	var recs []Record
	for _, ev := range []Event{
		MessageQueued{Info: info, Recipients: to, Protocol: "ESMTP", TReceive: Secs(time.Millisecond), TAccept: Secs(2 * time.Millisecond), Expires: time.Now()},
		MessageRouted{Info: info, Recipients: to, ConnectorOut: "internet", Queue: "example.com", Why: "the most specific address space"},
		AttemptFinished{Info: info, Hop: hop, Answer: answer, Disposition: mail.Relayed, Recipients: to, Attempt: 1, Stages: Stages{TData: Secs(time.Millisecond), TReply: Secs(time.Millisecond)}},
		RecipientRelayed{final},
		MessageRetired{Info: info, Recipients: 1, Relayed: 1, Attempts: 1, TTotal: Secs(28 * time.Millisecond)},
	} {
		recs = append(recs, e.Stamp(ev))
	}
	b.ReportAllocs()
	for b.Loop() {
		for i := range recs {
			if _, err := recs[i].MarshalJSON(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func TestPlainText(t *testing.T) {
	plain := func(s string) bool {
		for _, c := range []byte(s) {
			if c < ' ' || c > '~' || c == '"' || c == '\\' {
				return false
			}
		}
		return true
	}
	for size := range 20 {
		text := []byte("some text of 20 oct.")[:size]
		if !isPlain(string(text)) {
			t.Errorf("isPlain(%q) = false", text)
		}
		for at := range text {
			was := text[at]
			for c := range 256 {
				text[at] = byte(c)
				if got, want := isPlain(string(text)), plain(string(text)); got != want {
					t.Fatalf("isPlain(%q) = %t, want %t", text, got, want)
				}
			}
			text[at] = was
		}
	}
}

func TestEncode(t *testing.T) {
	r := Record{ID: "1", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Event: SenderRefused{Refusal{Reason: "first"}}}
	first, err := r.Encode([]byte("before "), new(Form))
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.AppendJSON(nil)
	if err != nil || "before "+string(again) != string(first) {
		t.Errorf("written again: %s, %v; want %s", again, err, first)
	}
	other := r
	other.Event = SenderRefused{Refusal{Reason: "second"}}
	if b, err := other.AppendJSON(nil); err != nil || !strings.Contains(string(b), "second") || strings.Contains(string(b), "first") {
		t.Errorf("another event: %s, %v", b, err)
	}
	r.Form = nil
	if b, err := r.AppendJSON(nil); err != nil || string(b) != string(again) {
		t.Errorf("without its form: %s, %v; want %s", b, err, again)
	}
}

func TestAmend(t *testing.T) {
	lists := []Recipient{{Address: `a,"t_accept":7,@example.com`, Reply: `,"t_accept":8}`}}
	early := MessageQueued{Info: Info{MailFrom: `,"t_accept":9,`, Size: 3}, Recipients: lists, TAccept: Secs(time.Millisecond), Expires: time.Date(2026, 1, 7, 3, 4, 5, 0, time.UTC)}
	for _, test := range []struct {
		name        string
		early, late Seconds
		form        bool // stays of use
	}{
		{"longer", early.TAccept, Secs(123456 * time.Microsecond), true},
		{"shorter", early.TAccept, Secs(time.Second), true},
		{"the same", early.TAccept, early.TAccept, true},
		{"negative", early.TAccept, Secs(-time.Second), true},
		{"left out after", early.TAccept, 0, false},
		{"left out before", 0, Secs(time.Second), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			early := early
			early.TAccept = test.early
			r := Record{ID: "1", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Event: early}
			if _, err := r.Encode(nil, new(Form)); err != nil {
				t.Fatal(err)
			}
			late := early
			late.TAccept = test.late
			r.Amend(late, "t_accept")
			if got := r.Form.of == ValueOf(r.Event); got != test.form {
				t.Errorf("the form is of use: %t, want %t", got, test.form)
			}
			ahead := Record{ID: r.ID, Time: r.Time}
			if _, err := ahead.EncodeAhead(nil, new(Form), &early); err != nil {
				t.Fatal(err)
			}
			early = MessageQueued{} // nothing is kept of it
			ahead.Amend(late, "t_accept")
			if got := ahead.Form.of == ValueOf(ahead.Event); got != test.form {
				t.Errorf("the form that was made ahead is of use: %t, want %t", got, test.form)
			}
			got, err := r.AppendJSON(nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := ahead.AppendJSON(nil); err != nil || string(b) != string(got) {
				t.Errorf("encoded ahead: %s, %v; want %s", b, err, got)
			}
			kept := r.Keep()
			want, err := kept.AppendJSON(nil)
			if err != nil || string(got) != string(want) {
				t.Errorf("amended: %s, %v; want %s", got, err, want)
			}
		})
	}
}

func TestAmendWithoutForm(t *testing.T) {
	r := Record{Event: MessageQueued{TAccept: 1}}
	r.Amend(MessageQueued{TAccept: 2}, "t_accept")
	if got := r.Event.(MessageQueued).TAccept; got != 2 {
		t.Errorf("TAccept = %d, want 2", got)
	}
	if _, err := r.Encode(nil, new(Form)); err != nil {
		t.Fatal(err)
	}
	r.Amend(MessageQueued{Helo: "other"}, "helo") // one that is left out when empty
	if b, err := r.AppendJSON(nil); err != nil || !strings.Contains(string(b), `"helo":"other"`) {
		t.Errorf("amended in a field that may be left out: %s, %v", b, err)
	}
}

func TestKindOf(t *testing.T) {
	for i, row := range table {
		ev := reflect.New(reflect.TypeOf(row.event)).Elem().Interface().(Event) // not made by the same code
		if k := kindOf(ev); k != kinds[reflect.TypeOf(ev)] || Number(ev) != i || Names()[i] != Name(ev) {
			t.Errorf("kindOf(%T) = %v, number %d, want %d", ev, k, Number(ev), i)
		}
	}
	used := 0
	for i := range slots {
		if slots[i].kind != nil {
			used++
		}
	}
	if used != len(table) {
		t.Errorf("%d slots are used, want %d", used, len(table))
	}
}
