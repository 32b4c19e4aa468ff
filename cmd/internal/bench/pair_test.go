package main

import (
	"testing"
	"time"
)

func TestAnother(t *testing.T) {
	for _, test := range []struct {
		name   string
		rounds int
		took   time.Duration
		want   bool
	}{
		{"the first", 0, 0, true},
		{"few, though late", 2, time.Hour, true},
		{"odd, though late", 7, time.Hour, true},
		{"in time", 8, 48 * time.Second, true},
		{"two more just fit", 4, 60 * time.Second, true},
		{"two more do not fit", 4, 61 * time.Second, false},
		{"late", 8, 91 * time.Second, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := another(test.rounds, test.took, 90*time.Second); got != test.want {
				t.Errorf("another(%d, %s) = %t, want %t", test.rounds, test.took, got, test.want)
			}
		})
	}
}

// Either relay is the first as often as the other, and the time is kept.
func TestRoundsAreEvenAndBounded(t *testing.T) {
	for _, each := range []time.Duration{time.Second, 5 * time.Second, 6500 * time.Millisecond, 40 * time.Second} {
		const budget = 90 * time.Second
		rounds, took := 0, time.Duration(0)
		for ; another(rounds, took, budget); rounds++ {
			took += each
		}
		if rounds%2 != 0 || rounds < leastRounds {
			t.Errorf("%d rounds of %s, want an even number, at least %d", rounds, each, leastRounds)
		}
		if took > max(budget, leastRounds*each) {
			t.Errorf("%d rounds of %s took %s, more than %s", rounds, each, took, budget)
		}
	}
}
