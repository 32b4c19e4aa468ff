package quota

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func newBook(t *testing.T) *Book {
	t.Helper()
	b, err := Open(filepath.Join(t.TempDir(), "quota.json"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDayRolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newBook(t).Account("x", Limits{RecipientsPerDay: 100})
		begin := time.Now()
		for range 10 {
			if limit, _ := a.Take(time.Now(), 10); limit != "" {
				t.Fatalf("there is no room under %s", limit)
			}
		}
		limit, again := a.Take(time.Now(), 1)
		if limit != "recipients_per_day" {
			t.Fatalf("Take = %q, want recipients_per_day", limit)
		}
		if wait := again.Sub(begin); wait < 24*time.Hour || wait > 24*time.Hour+5*time.Minute {
			t.Errorf("come again in %v, want a day", wait)
		}
		time.Sleep(time.Until(again))
		if limit, _ := a.Take(time.Now(), 100); limit != "" {
			t.Errorf("a day later there is no room under %s", limit)
		}
	})
}

func TestWhatWasNotTakenIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newBook(t).Account("x", Limits{MessagesPerHour: 1, RecipientsPerDay: 10})
		at := time.Now()
		a.Take(at, 10)
		time.Sleep(10 * time.Minute) // it lands in the slots that it came from
		a.Done(at, 10, 0)
		if limit, _ := a.Take(time.Now(), 10); limit != "" {
			t.Errorf("no room under %s", limit)
		}
		a.Done(time.Now(), 10, 4)
		list := a.Usage(time.Now())
		if len(list) != 2 || list[0].Used != 1 || list[1].Used != 4 {
			t.Errorf("Usage = %+v, want one message and 4 recipients", list)
		}
		if limit, again := a.Take(time.Now(), 1); limit != "messages_per_hour" || time.Until(again) > 62*time.Minute {
			t.Errorf("Take = %q at %v, want messages_per_hour within the hour", limit, again)
		}
	})
}

// What waits for its pace has been counted for the hour, and not been sent.
func TestMinuteIsWhatWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newBook(t).Account("x", Limits{MessagesPerMinute: 3, MessagesPerHour: 100})
		at := time.Now()
		for range 5 {
			a.Take(at, 1)
		}
		used := func(want ...int) {
			t.Helper()
			list := a.Usage(time.Now())
			if len(list) != 2 || list[0].Used != want[0] || list[1].Used != want[1] {
				t.Errorf("Usage = %+v, want %v in the minute and the hour", list, want)
			}
		}
		used(0, 5)
		time.Sleep(20 * time.Second)
		a.Done(at, 1, 1)
		used(1, 5)
		a.Done(at, 1, 0)
		used(1, 4)
		time.Sleep(2 * time.Minute)
		used(0, 4)
	})
}

func TestLargeMessageGoesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newBook(t).Account("x", Limits{RecipientsPerDay: 10})
		if limit, _ := a.Take(time.Now(), 50); limit != "" {
			t.Error("a message that is larger than the limit would wait for ever")
		}
		if limit, _ := a.Take(time.Now(), 1); limit == "" {
			t.Error("there is room beside it")
		}
	})
}

func TestAccountsAreSharedByKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		one, two, other := b.Account("login", Limits{MessagesPerDay: 1}), b.Account("login", Limits{MessagesPerDay: 1}), b.Account("else", Limits{MessagesPerDay: 1})
		one.Take(time.Now(), 1)
		if limit, _ := two.Take(time.Now(), 1); limit == "" {
			t.Error("two connectors with one login have two quotas")
		}
		if limit, _ := other.Take(time.Now(), 1); limit != "" {
			t.Error("two logins have one quota")
		}
	})
}

func TestForecast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newBook(t).Account("x", Limits{RecipientsPerDay: 1200})
		if u := a.Usage(time.Now())[0]; u.Forecast >= 0 {
			t.Errorf("forecast of nothing = %v", u.Forecast)
		}
		for range 60 { // 300 an hour
			a.Take(time.Now(), 5)
			time.Sleep(time.Minute)
		}
		u := a.Usage(time.Now())[0]
		if u.Used != 300 || u.Limit != 1200 || u.Forecast < 150*time.Minute || u.Forecast > 210*time.Minute {
			t.Errorf("Usage = %+v, want 300 of 1200, and the end in about 3 hours", u)
		}
	})
}

func TestCountsOutliveRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		limits := Limits{MessagesPerHour: 5, MessagesPerDay: 100, RecipientsPerDay: 50}
		a := b.Account("x", limits)
		for range 5 {
			a.Take(time.Now(), 3)
		}
		if err := b.Save(); err != nil {
			t.Fatal(err)
		}
		before := a.Usage(time.Now())
		time.Sleep(30 * time.Minute)
		b, err := Open(b.file)
		if err != nil {
			t.Fatal(err)
		}
		a = b.Account("x", limits)
		for i, u := range a.Usage(time.Now()) {
			if u.Used != before[i].Used {
				t.Errorf("%s: %d after the restart, want %d", u.Quota, u.Used, before[i].Used)
			}
		}
		if limit, _ := a.Take(time.Now(), 1); limit != "messages_per_hour" {
			t.Errorf("Take = %q, want messages_per_hour", limit)
		}
		time.Sleep(31 * time.Minute)
		if limit, _ := a.Take(time.Now(), 1); limit != "" {
			t.Errorf("an hour later there is no room under %s", limit)
		}
		time.Sleep(25 * time.Hour)
		b.changed = true
		if err := b.Save(); err != nil || len(b.accounts) != 0 {
			t.Errorf("Save = %v with %d accounts left, want none: nothing is counted any more", err, len(b.accounts))
		}
	})
}

func TestDamagedFile(t *testing.T) {
	for _, test := range []struct{ name, data string }{
		{"empty", ""}, {"text", "hello"}, {"another version", `{"version":9}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "quota.json")
			if err := os.WriteFile(file, []byte(test.data), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(file); err == nil || !strings.Contains(err.Error(), "move it away") {
				t.Errorf("Open = %v, want what to do", err)
			}
		})
	}
}

// TestNeverMore wants no order of takings and givings back to exceed a limit in
// any window.
func TestNeverMore(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		b := &Book{accounts: map[string]*account{}}
		limits := Limits{MessagesPerHour: rapid.IntRange(1, 20).Draw(r, "hour"), RecipientsPerDay: rapid.IntRange(5, 100).Draw(r, "day")}
		a := b.Account("x", limits)
		now := time.Unix(1_700_000_000, 0)
		type taking struct {
			at time.Time
			n  int
		}
		var taken []taking
		for range rapid.IntRange(1, 200).Draw(r, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 3600).Draw(r, "pause")) * time.Second)
			n := rapid.IntRange(1, 5).Draw(r, "recipients")
			limit, again := a.Take(now, n)
			if limit != "" {
				if !again.After(now) {
					r.Fatalf("refused by %s, and come again at %v, which is not later", limit, again)
				}
				continue
			}
			taken = append(taken, taking{now, n})
		}
		for i, first := range taken {
			messages, recipients := 0, 0
			for _, tk := range taken[i:] {
				if tk.at.Sub(first.at) < time.Hour {
					messages++
				}
				if tk.at.Sub(first.at) < 24*time.Hour {
					recipients += tk.n
				}
			}
			if messages > limits.MessagesPerHour || recipients > limits.RecipientsPerDay {
				r.Fatalf("%d messages in an hour, %d recipients in a day; limits %+v", messages, recipients, limits)
			}
		}
	})
}

// TestSplitMessages counts as the next hop does: each recipient once, and each
// transaction as a message.
func TestSplitMessages(t *testing.T) {
	for _, test := range []struct {
		name       string
		perMessage int
		recipients int
		used       int
		want       [2]int // messages and recipients that count in the end
	}{
		{"one transaction", 100, 100, 100, [2]int{1, 100}},
		{"three transactions", 100, 201, 201, [2]int{3, 201}},
		{"one of three was taken", 100, 201, 100, [2]int{1, 100}},
		{"some of each", 100, 201, 150, [2]int{2, 150}},
		{"none", 100, 201, 0, [2]int{0, 0}},
		{"no bound", 0, 201, 201, [2]int{1, 201}},
		{"no bound, none", 0, 201, 0, [2]int{0, 0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newBook(t).Account("x", Limits{MessagesPerDay: 1000, RecipientsPerDay: 1000, RecipientsPerMessage: test.perMessage})
				at := time.Now()
				if limit, _ := a.Take(at, test.recipients); limit != "" {
					t.Fatalf("no room under %s", limit)
				}
				a.Done(at, test.recipients, test.used)
				list := a.Usage(time.Now())
				if got := [2]int{list[0].Used, list[1].Used}; got != test.want {
					t.Errorf("messages and recipients = %v, want %v", got, test.want)
				}
			})
		})
	}
	t.Run("room", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newBook(t).Account("x", Limits{MessagesPerHour: 4, RecipientsPerMessage: 10})
			a.Take(time.Now(), 30)
			if limit, _ := a.Take(time.Now(), 11); limit != "messages_per_hour" {
				t.Errorf("Take = %q, want messages_per_hour", limit)
			}
			if limit, _ := a.Take(time.Now(), 10); limit != "" {
				t.Errorf("no room under %s", limit)
			}
		})
	})
	if (Limits{RecipientsPerMessage: 1}).Any() {
		t.Error("recipients of a message are a limit over a time")
	}
}

func FuzzFile(f *testing.F) {
	for _, name := range []string{"quota.json", "clock-ahead.json", "other-version.json", "cut-off.json"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"version":1,"accounts":{"x":{"hour":{"28333333":3},"day":{"5666666":2},"recipients":{"-1":4,"9223372036854775807":5}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "quota.json")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := Open(file)
		if err != nil {
			return
		}
		a := b.Account("x", Limits{MessagesPerHour: 1, RecipientsPerDay: 1})
		a.Take(time.Now(), 1)
		a.Usage(time.Now())
		if err := b.Save(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestManyWait: however often messages were put off, they come again within the
// time over which they are spread, and never before there is room.
func TestManyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		a := b.Account("x", Limits{RecipientsPerDay: 100})
		now := time.Now()
		a.Take(now, 100)
		b.accounts["x"].waiting = 1e9
		for range 100 {
			_, again := a.Take(now, 100)
			if wait := again.Sub(now); wait < 24*time.Hour || wait > 25*time.Hour+5*time.Minute {
				t.Fatalf("come again in %v, want in a day, and an hour at most", wait)
			}
		}
	})
}
