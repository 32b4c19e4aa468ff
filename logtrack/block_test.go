package logtrack

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// fillRandom sets fields of v at random; some stay zero.
func fillRandom(v reflect.Value, rng *rand.Rand) {
	if rng.IntN(4) == 0 {
		return
	}
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = time.UnixMicro(1_800_000_000_000_000 + rng.Int64N(1e15)).UTC()
		if rng.IntN(20) == 0 {
			*x = x.Add(time.Duration(rng.IntN(1000)))
		}
		return
	case *netip.Addr:
		*x = netip.AddrFrom4([4]byte{192, 0, 2, byte(rng.IntN(256))})
		if rng.IntN(5) == 0 {
			*x = netip.MustParseAddr([]string{"2001:db8::1", "::ffff:192.0.2.7", "fe80::1%eth0"}[rng.IntN(3)])
		}
		return
	case *event.Seconds:
		*x = event.Seconds(time.Duration(rng.Int64N(1e12)) * time.Microsecond)
		return
	case *mail.Disposition:
		*x = mail.Disposition(1 + rng.IntN(8))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for _, f := range v.Fields() {
			fillRandom(f, rng)
		}
	case reflect.String:
		texts := []string{"a", "two words", "quote\" back\\slash", "é漢", "<tag>&", "ctl\x01\x7f\r\n", mail.NewID(time.UnixMilli(rng.Int64N(1e13))), mail.NewUID(time.Now())}
		v.SetString(texts[rng.IntN(len(texts))])
	case reflect.Slice:
		n := rng.IntN(4)
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fillRandom(v.Index(i), rng)
		}
	case reflect.Bool:
		v.SetBool(true)
	default:
		if v.CanInt() {
			v.SetInt(rng.Int64N(1e12) - 5e11)
			if v.Type().Size() < 8 {
				v.SetInt(rng.Int64N(100))
			}
		} else {
			v.SetUint(1 + rng.Uint64N(60000))
		}
	}
}

// randomFact is any fact with random fields, no matter whether they make sense.
func randomFact(rng *rand.Rand) event.Event {
	names := event.Names()
	p := planNames[names[rng.IntN(len(names))]]
	v := reflect.New(p.typ).Elem()
	fillRandom(v, rng)
	return v.Interface().(event.Event)
}

func randomRecords(rng *rand.Rand, n int) []event.Record {
	at := time.UnixMicro(1_780_000_000_000_000).UTC()
	var ids []mail.QueueID
	for range n/5 + 1 {
		ids = append(ids, mail.QueueID(mail.NewID(at)))
	}
	recs := make([]event.Record, n)
	for i := range recs {
		at = at.Add(time.Duration(rng.IntN(3_000_000)) * time.Microsecond)
		r := event.Record{ID: mail.NewID(at), Time: at, Node: "n1", Source: event.SourceQueue, Event: randomFact(rng)}
		if rng.IntN(3) > 0 {
			r.Message = ids[rng.IntN(len(ids))]
		}
		if rng.IntN(3) > 0 {
			r.Session, r.UID = mail.NewID(at), mail.NewUID(at)
		}
		recs[i] = r
	}
	return recs
}

func jsonOf(t testing.TB, r *event.Record) string {
	t.Helper()
	b, err := r.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func viewOf(e *encoded) *view {
	return newView(e.head, func(read func([]byte) error) error { return read(e.body) })
}

func viewRecords(t testing.TB, v *view) []string {
	t.Helper()
	var got []string
	for row := range int(v.head.rows) {
		typ, _ := v.typeOf(row)
		if err := v.needRecords(typ, readAll); err != nil {
			t.Fatal(err)
		}
		r, err := v.record(row, readAll)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, jsonOf(t, &r))
	}
	slices.Sort(got)
	return got
}

func TestBlockLosesNothing(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 7))
		recs := randomRecords(rng, 1+rng.IntN(400))
		if seed%7 == 0 { // identifiers that are not ULIDs, and times out of the ordinary
			recs[0].ID, recs[0].Time = "import-1", time.Time{}
		}
		var want []string
		for i := range recs {
			want = append(want, jsonOf(t, &recs[i]))
		}
		slices.Sort(want)
		e := encodeBlock(3, recs)
		got := viewRecords(t, viewOf(e))
		if !slices.Equal(got, want) {
			for i := range want {
				if got[i] != want[i] {
					t.Fatalf("seed %d:\n got %s\nwant %s", seed, got[i], want[i])
				}
			}
		}
		h, err := readHeader(3, e.head.append(nil), same)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(h, e.head) {
			t.Errorf("header comes back as\n%+v, want\n%+v", h, e.head)
		}
	}
}

func TestEncodingIsDeterministic(t *testing.T) {
	recs := randomRecords(rand.New(rand.NewPCG(1, 1)), 300)
	a, b := encodeBlock(1, recs), encodeBlock(1, recs)
	if !bytes.Equal(a.body, b.body) || !slices.Equal(a.posts, b.posts) {
		t.Error("two encodings of the same records differ")
	}
}

func FuzzView(f *testing.F) {
	recs := randomRecords(rand.New(rand.NewPCG(5, 5)), 12)
	e := encodeBlock(1, recs)
	f.Add(e.head.append(nil), e.body)
	f.Add([]byte{1}, []byte{1, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, head, body []byte) {
		h, err := readHeader(1, head, same)
		if err != nil {
			h = e.head
		}
		if len(body) < bodyStart {
			return
		}
		body = sign(bytes.Clone(body)) // what the checksum would stop
		v := newView(h, func(read func([]byte) error) error { return read(body) })
		for typ, run := range h.types.unpack() {
			if v.needRecords(typ, readAll) == nil && run.n > 0 {
				_, _ = v.record(run.start, readAll)
			}
		}
	})
}

func FuzzNums(f *testing.F) {
	f.Add([]byte{2, 0, 1, 2, 3, 4}, 2)
	f.Add(appendNums(nil, []int64{5, 6, 900, 1 << 40}), 4)
	f.Fuzz(func(t *testing.T, src []byte, n int) {
		if n < 0 || n > 1000 {
			return
		}
		nums, _, err := readNums(src, n)
		if err != nil {
			return
		}
		again, _, err := readNums(appendNums(nil, nums), n)
		if err != nil || !slices.Equal(again, nums) {
			t.Errorf("numbers %v come back as %v, %v", nums, again, err)
		}
	})
}

// TestViewSurvivesDamage reads blocks with random octets changed, past the
// checksum: errors are fine, panics and endless allocation are not.
func TestViewSurvivesDamage(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	e := encodeBlock(1, randomRecords(rng, 60))
	for range 800 {
		body := bytes.Clone(e.body)
		for range 1 + rng.IntN(4) {
			body[bodyStart+rng.IntN(len(body)-bodyStart)] ^= byte(1 + rng.IntN(255))
		}
		if rng.IntN(5) == 0 {
			body = body[:bodyStart+rng.IntN(len(body)-bodyStart)]
		}
		sign(body)
		v := newView(e.head, func(read func([]byte) error) error { return read(body) })
		for typ, run := range e.head.types.unpack() {
			if v.needRecords(typ, readAll) == nil {
				_, _ = v.record(run.start, readAll)
			}
		}
		_, _ = newView(e.head, v.load).rows(nil, nil)
	}
	for at := range e.body { // and the checksum stops every single one
		body := bytes.Clone(e.body)
		body[at] ^= 0x40
		if newView(e.head, func(read func([]byte) error) error { return read(body) }).need("queue_id") == nil {
			t.Fatalf("damage of octet %d is not seen", at)
		}
	}
}

// TestPackedNumbersOneByOne reads numbers one by one and in part, in each way
// that they are stored.
func TestPackedNumbersOneByOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, test := range []struct {
		name string
		next func(before int64) int64
	}{
		{"all the same", func(int64) int64 { return -7 }},
		{"one octet", func(int64) int64 { return rng.Int64N(200) - 100 }},
		{"two octets", func(int64) int64 { return rng.Int64N(1 << 16) }},
		{"eight octets", func(int64) int64 { return int64(rng.Uint64()) }},
		{"each one more", func(before int64) int64 { return before + 1 }},
		{"growing", func(before int64) int64 { return before + rng.Int64N(1000) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, n := range []int{0, 1, 2, 300} {
				nums := make([]int64, n)
				last := int64(1 << 40)
				for i := range nums {
					last = test.next(last)
					nums[i] = last
				}
				p, rest, err := openNums(append(appendNums(nil, nums), 1, 2, 3), n)
				if err != nil || len(rest) != 3 {
					t.Fatalf("%d numbers: %d octets left, %v", n, len(rest), err)
				}
				total := int64(0)
				for i, want := range nums {
					if got := p.at(i); got != want {
						t.Errorf("at(%d) of %d = %d, want %d", i, n, got, want)
					}
					if got := p.total(i); got != total {
						t.Errorf("total(%d) of %d = %d, want %d", i, n, got, total)
					}
					total += want
					if got := p.head(nil, i+1); !slices.Equal(got, nums[:i+1]) {
						t.Errorf("head(%d) of %d = %d, want %d", i+1, n, got, nums[:i+1])
					}
				}
			}
		})
	}
}

// TestPackedDictionaries reads entries one by one.
func TestPackedDictionaries(t *testing.T) {
	for _, test := range []struct {
		name string
		dict []string
	}{
		{"empty", []string{""}},
		{"plain", []string{"", "a", "bcd", "ef", "\x00"}},
		{"ULIDs", []string{"", "01JZ8Z0Z0Z0Z0Z0Z0Z0Z0Z0Z0Z", "01JZ8Z0Z0Z7Z0Z0Z0Z0Z0Z0Z0Y", "01JZ8Z0Z0Z9Z0Z0Z0Z0Z0Z0Z0X"}},
		{"UUIDs", []string{"", "01980b5c-7c00-7abc-8def-0123456789ab", "01980b5c-7c01-7abc-8def-0123456789ab"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, located := range []bool{false, true} {
				d, err := openDict(new(builder).appendDict(nil, test.dict))
				if err == nil && located {
					_, err = d.locate(nil)
				}
				if err != nil {
					t.Fatal(err)
				}
				for code, want := range test.dict {
					if got, err := d.append(nil, code); err != nil || string(got) != want {
						t.Errorf("entry %d is %q, %v, want %q", code, got, err, want)
					}
				}
				if _, err := d.append(nil, len(test.dict)); !errors.Is(err, errDamaged) {
					t.Errorf("the entry after the last one gives %v", err)
				}
			}
		})
	}
}

// TestShare: headers that are alike in small have one of it, whatever came in between.
func TestShare(t *testing.T) {
	read := func(class string) *header {
		t.Helper()
		made := header{small: map[string][]string{"class": {class}, "provider": {}}}
		h, err := readHeader(1, made.append(nil), same)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(h.small, made.small) {
			t.Fatalf("small = %v, want %v", h.small, made.small)
		}
		return h
	}
	alike := func(a, b *header) bool {
		return reflect.ValueOf(a.small).Pointer() == reflect.ValueOf(b.small).Pointer()
	}
	a := read("share test")
	if b := read("share test"); !alike(a, b) {
		t.Error("two that are alike have one each")
	}
	if b := read("another share test"); alike(a, b) {
		t.Error("two that are not alike have one")
	}
	for i := range 2 * maxSmalls {
		read(strconv.Itoa(i))
	}
	if n := len(smalls.by); n > maxSmalls {
		t.Errorf("%d are known, want at most %d", n, maxSmalls)
	}
}
