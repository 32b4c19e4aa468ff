package main

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	for _, test := range []struct {
		name string
		v    []float64
		p    float64
		want float64
	}{
		{"nothing", nil, 0.5, 0},
		{"one", []float64{3}, 0.99, 3},
		{"odd number", []float64{9, 1, 5}, 0.5, 5},
		{"even number", []float64{4, 1, 3, 2}, 0.5, 2.5},
		{"lower quartile", []float64{1, 2, 3, 4}, 0.25, 1.75},
		{"upper quartile", []float64{1, 2, 3, 4, 5}, 0.75, 4},
		{"least", []float64{2, 1}, 0, 1},
		{"most", []float64{2, 1}, 1, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			was := slices.Clone(test.v)
			if got := quantile(test.v, test.p); math.Abs(got-test.want) > 1e-9 {
				t.Errorf("quantile(%v, %v) = %v, want %v", test.v, test.p, got, test.want)
			}
			if !slices.Equal(test.v, was) {
				t.Errorf("quantile() left %v of %v", test.v, was)
			}
		})
	}
}

func TestQuantileOfDurations(t *testing.T) {
	var v []time.Duration
	for i := range 100 {
		v = append(v, time.Duration(100-i)*time.Millisecond)
	}
	if got, want := quantile(v, 0.99), 99010*time.Microsecond; got != want {
		t.Errorf("p99 of 1 to 100 ms = %s, want %s", got, want)
	}
	if got, want := middle(v), 50500*time.Microsecond; got != want {
		t.Errorf("middle of 1 to 100 ms = %s, want %s", got, want)
	}
}

// The ratio of medians hides what the machine did meanwhile; that of pairs does not.
func TestRatiosArePaired(t *testing.T) {
	var with, without []figure
	for _, rate := range []float64{1000, 2000, 8000, 4000} { // the machine's speed
		f := figure{result: result{AcceptRate: rate * 0.9, EndRate: rate / 2, P99: 3 * time.Millisecond}, cpu: 330}
		with = append(with, f)
		f.AcceptRate, f.P99, f.cpu = rate, 2*time.Millisecond, 300
		without = append(without, f)
	}
	for _, test := range []struct {
		name string
		a    aspect
		want float64
	}{
		{"accept", acceptRate, 0.9},
		{"end to end", endRate, 1},
		{"p99", p99Reply, 1.5},
		{"CPU", cpuMessage, 1.1},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := test.a.ratios(with, without)
			if len(r) != len(with) {
				t.Fatalf("%d ratios of %d pairs", len(r), len(with))
			}
			for _, p := range []float64{0.25, 0.5, 0.75} {
				if got := quantile(r, p); math.Abs(got-test.want) > 1e-9 {
					t.Errorf("quantile %v of the ratios = %v, want %v", p, got, test.want)
				}
			}
		})
	}
	if got, want := acceptRate.median(without), 3000.0; got != want {
		t.Errorf("median of the rates = %v, want %v", got, want)
	}
}
