// Package quota counts what the relay gives to next hops that limit it, over an
// hour and over a day, and says when more may go.
//
// It exists because a provider that limits an account refuses what is above the
// limit, and some lock the account for that: the relay must know its own use, also
// after a restart. It promises that an account never gets more than its limits in
// any window, whatever order attempts end in, where the windows roll, and are
// counted in slots (of a minute, and of five) that leave them as a whole; that what
// a next hop may have taken counts as taken; and that asking costs microseconds.
// What is counted is written down every few seconds, so that a crash forgets no
// more than that.
//
// To add a limit, add it to [Limits] and to the table in limits.
package quota

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Limits are what a next hop takes. Zero is no limit.
type Limits struct {
	MessagesPerMinute int // counted here, and kept by the scheduler's pace
	MessagesPerHour   int
	MessagesPerDay    int
	RecipientsPerDay  int

	// Recipients of one transaction: a message with more goes in several, each of
	// which is a message to the next hop. A recipient counts once all the same.
	RecipientsPerMessage int
}

// Any reports whether there is a limit over a time.
func (l Limits) Any() bool {
	l.RecipientsPerMessage = 0
	return l != Limits{}
}

// messages is how many messages one with so many recipients is to the next hop.
func (l Limits) messages(recipients int) int {
	if l.RecipientsPerMessage <= 0 || recipients <= 0 {
		return min(1, max(0, recipients))
	}
	return (recipients + l.RecipientsPerMessage - 1) / l.RecipientsPerMessage
}

// Usage is how much of one limit is used.
type Usage struct {
	Quota       string // the configuration key, such as "recipients_per_day"
	Used, Limit int
	Forecast    time.Duration // until it is used up, if mail goes on as in the last hour; negative: not within its window
}

// slots is a rolling window of counts.
type slots struct {
	slot   time.Duration
	counts []int // by the number of the slot, modulo their number
	last   int64 // number of the newest slot
	sum    int
}

func newSlots(slot time.Duration, n int) slots { return slots{slot: slot, counts: make([]int, n)} }

func (s *slots) number(t time.Time) int64 { return t.UnixNano() / int64(s.slot) }

// advance forgets what is older than the window. A clock that goes back forgets
// nothing.
func (s *slots) advance(now time.Time) {
	n := int64(len(s.counts))
	at := s.number(now)
	if at-s.last >= n {
		clear(s.counts)
		s.sum = 0
		s.last = at
		return
	}
	for s.last < at {
		s.last++
		i := s.last % n
		s.sum -= s.counts[i]
		s.counts[i] = 0
	}
}

// add counts n, which may be negative, at a time that is not in the future.
func (s *slots) add(at time.Time, n int) {
	k := min(s.number(at), s.last)
	if s.last-k >= int64(len(s.counts)) {
		return // it has left the window already
	}
	i := k % int64(len(s.counts))
	n = max(n, -s.counts[i])
	s.counts[i] += n
	s.sum += n
}

// room says when n more fit under limit: now, or when enough has left the window.
// What never fits may go when nothing else is in it.
func (s *slots) room(now time.Time, n, limit int) time.Time {
	over := s.sum + min(n, limit) - limit
	if over <= 0 {
		return now
	}
	size := int64(len(s.counts))
	for k := s.last - size + 1; k <= s.last; k++ {
		if k < 0 {
			continue
		}
		if over -= s.counts[k%size]; over <= 0 {
			return time.Unix(0, (k+size)*int64(s.slot))
		}
	}
	return now.Add(time.Duration(size) * s.slot)
}

// recent is the sum of the newest n slots.
func (s *slots) recent(n int) (sum int) {
	size := int64(len(s.counts))
	for k := s.last; k > s.last-int64(min(n, len(s.counts))) && k >= 0; k-- {
		sum += s.counts[k%size]
	}
	return sum
}

// forecast is how long it takes until limit is reached, when per slot so much
// comes and what is old leaves; negative when it is not within the window.
func (s *slots) forecast(limit int, perSlot float64) time.Duration {
	used, size := float64(s.sum), int64(len(s.counts))
	if s.sum >= limit {
		return 0
	}
	for i := range size {
		if k := s.last - size + 1 + i; k >= 0 {
			used -= float64(s.counts[k%size])
		}
		if used += perSlot; used >= float64(limit) {
			return time.Duration(i+1) * s.slot
		}
	}
	return -1
}

// account is what is counted of one login, or of one connector. Each window has a
// slot more than its time, because the newest and the oldest are not whole. The
// minute has what was sent: what is counted beforehand may still wait for its pace.
type account struct {
	minute, hour, day, recipients slots
	waiting                       float64 // messages that were put off and have not gone yet, about
}

func newAccount() *account {
	return &account{
		minute: newSlots(time.Second, 61), hour: newSlots(time.Minute, 61), day: newSlots(5*time.Minute, 289), recipients: newSlots(5*time.Minute, 289),
	}
}

// limit is one of the limits of an account.
type limit struct {
	key    string
	window *slots
	limit  int
	need   func(recipients int) int
	paced  bool // by somebody else
}

func (a *account) limits(l Limits) []limit {
	return []limit{
		{"messages_per_minute", &a.minute, l.MessagesPerMinute, l.messages, true},
		{"messages_per_hour", &a.hour, l.MessagesPerHour, l.messages, false},
		{"messages_per_day", &a.day, l.MessagesPerDay, l.messages, false},
		{"recipients_per_day", &a.recipients, l.RecipientsPerDay, func(n int) int { return n }, false},
	}
}

func (a *account) advance(now time.Time) {
	for _, s := range []*slots{&a.minute, &a.hour, &a.day, &a.recipients} {
		s.advance(now)
	}
}

func (a *account) add(at time.Time, messages, recipients int) {
	a.hour.add(at, messages)
	a.day.add(at, messages)
	a.recipients.add(at, recipients)
}

// Book counts for all accounts. It is safe for use by many goroutines.
type Book struct {
	file string

	mu       sync.Mutex
	accounts map[string]*account
	changed  bool
}

// longestSpread bounds by how much messages that wait for room come apart.
const longestSpread = time.Hour

// Account counts against the limits of one connector. Several connectors that
// log in as the same user share what is counted.
type Account struct {
	book   *Book
	key    string
	limits Limits
}

// Account names who counts, and the limits.
func (b *Book) Account(key string, l Limits) *Account { return &Account{b, key, l} }

// account finds an account. The caller holds mu.
func (b *Book) account(key string, now time.Time) *account {
	a := b.accounts[key]
	if a == nil {
		a = newAccount()
		b.accounts[key] = a
	}
	a.advance(now)
	return a
}

// Take counts one message with so many recipients, when there is room for it
// under each limit. Otherwise it names the limit, and says when to come again:
// when there is room, and apart from others that wait for it.
func (q *Account) Take(now time.Time, recipients int) (limit string, again time.Time) {
	b := q.book
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.account(q.key, now)
	for _, l := range a.limits(q.limits) {
		if l.limit <= 0 || l.paced {
			continue
		}
		at := l.window.room(now, l.need(recipients), l.limit)
		if !at.After(now) || !again.IsZero() && !at.After(again) {
			continue
		}
		window := time.Duration(len(l.window.counts)) * l.window.slot
		each := float64(window) / float64(l.limit) * float64(max(1, l.need(recipients)))
		spread := min(a.waiting*each, float64(longestSpread))              // bounded first: so much may wait that no Duration holds it
		limit, again = l.key, at.Add(time.Duration(rand.Float64()*spread)) //nolint:gosec // spreads load
	}
	if limit != "" {
		a.waiting++
		return limit, again
	}
	a.waiting = max(0, a.waiting-1)
	a.add(now, q.limits.messages(recipients), recipients)
	b.changed = true
	return "", time.Time{}
}

// Done gives back what the next hop did not take of what was taken at that time.
func (q *Account) Done(taken time.Time, recipients, used int) {
	b := q.book
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	a := b.account(q.key, now)
	a.minute.add(now, q.limits.messages(used))
	if used >= recipients {
		return
	}
	a.add(taken, q.limits.messages(used)-q.limits.messages(recipients), used-recipients)
	b.changed = true
}

// Usage is how much of each limit is used.
func (q *Account) Usage(now time.Time) (list []Usage) {
	b := q.book
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.account(q.key, now)
	for _, l := range a.limits(q.limits) {
		if l.limit <= 0 {
			continue
		}
		u := Usage{Quota: l.key, Used: l.window.sum, Limit: l.limit, Forecast: -1}
		hour := min(int(time.Hour/l.window.slot), len(l.window.counts))
		if rate := float64(l.window.recent(hour)) / float64(hour); rate > 0 {
			u.Forecast = l.window.forecast(l.limit, rate)
		}
		list = append(list, u)
	}
	return list
}

// saved is the file.
type saved struct {
	Version  int                     `json:"version"`
	Accounts map[string]savedAccount `json:"accounts"`
}

// savedAccount has the slots that hold something, by their numbers.
type savedAccount struct {
	Hour       map[int64]int `json:"hour,omitempty"`
	Day        map[int64]int `json:"day,omitempty"`
	Recipients map[int64]int `json:"recipients,omitempty"`
}

func (s *slots) save() map[int64]int {
	m := map[int64]int{}
	size := int64(len(s.counts))
	for k := max(0, s.last-size+1); k <= s.last; k++ {
		if n := s.counts[k%size]; n > 0 {
			m[k] = n
		}
	}
	return m
}

func (s *slots) load(m map[int64]int, now time.Time) {
	s.advance(now)
	for k, n := range m {
		if n > 0 && k >= 0 && k < s.number(now)+int64(len(s.counts)) { // a clock that was ahead counts now
			s.add(time.Unix(0, min(k, s.last)*int64(s.slot)), n)
		}
	}
}

// maxFile bounds the file.
const maxFile = 16 << 20

// Open reads what was counted before. A file that cannot be read is an error:
// to begin at nothing would exceed the limits.
func Open(file string) (*Book, error) {
	b := &Book{file: file, accounts: map[string]*account{}}
	info, err := os.Stat(file)
	if errors.Is(err, os.ErrNotExist) {
		return b, nil
	}
	var data []byte
	if err == nil && info.Size() > maxFile {
		err = errors.New("the file is too large")
	}
	if err == nil {
		data, err = os.ReadFile(file) //nolint:gosec // below our own data folder
	}
	if err != nil {
		return nil, fmt.Errorf("read quotas: %w", err)
	}
	var s saved
	if err := json.Unmarshal(data, &s); err != nil || s.Version != 1 {
		return nil, fmt.Errorf("read quotas: %s is damaged, or of another version; move it away to count from nothing", file)
	}
	now := time.Now()
	for key, c := range s.Accounts {
		a := b.account(key, now)
		a.hour.load(c.Hour, now)
		a.day.load(c.Day, now)
		a.recipients.load(c.Recipients, now)
	}
	return b, nil
}

// Save writes down what is counted, if that has changed.
func (b *Book) Save() error {
	b.mu.Lock()
	if !b.changed {
		b.mu.Unlock()
		return nil
	}
	b.changed = false
	s := saved{Version: 1, Accounts: map[string]savedAccount{}}
	now := time.Now()
	for key, a := range b.accounts {
		a.advance(now)
		if a.day.sum == 0 && a.recipients.sum == 0 {
			if a.waiting < 1 {
				delete(b.accounts, key)
			}
			continue
		}
		s.Accounts[key] = savedAccount{a.hour.save(), a.day.save(), a.recipients.save()}
	}
	b.mu.Unlock()
	data, err := json.Marshal(s)
	if err == nil {
		err = replace(b.file, data)
	}
	if err != nil {
		b.mu.Lock()
		b.changed = true
		b.mu.Unlock()
		return fmt.Errorf("write quotas: %w", err)
	}
	return nil
}

// replace writes a file in the place of another, so that one of both is there
// whatever happens.
func replace(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".quota-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
