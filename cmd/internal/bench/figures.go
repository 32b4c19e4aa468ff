package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// number is what a figure can be.
type number interface{ ~int | ~int64 | ~float64 }

// quantile is the value below which the share p of v lies. Between two values
// it is on the line that joins them, so that the median of an even number of
// figures favours none. It is zero when v is empty.
func quantile[T number](v []T, p float64) T {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	at := p * float64(len(v)-1)
	low := math.Floor(at)
	a, b := v[int(low)], v[int(math.Ceil(at))]
	return a + T(float64(b-a)*(at-low))
}

// middle is the median of v.
func middle[T number](v []T) T { return quantile(v, 0.5) }

// figure is what one load found of one relay.
type figure struct {
	result
	cpu float64 // µs a message
}

// aspect is one number of a figure.
type aspect struct {
	name string
	of   func(figure) float64
	unit func(float64) string
}

func whole(v float64) string { return fmt.Sprintf("%.0f", v) }

func ms(ns float64) string { return fmt.Sprintf("%.1f ms", ns/1e6) }

// What is compared of two relays.
var (
	acceptRate = aspect{"accepted/s", func(f figure) float64 { return f.AcceptRate }, whole}
	endRate    = aspect{"end to end/s", func(f figure) float64 { return f.EndRate }, whole}
	p50Reply   = aspect{"p50 of 250 after DATA", func(f figure) float64 { return float64(f.P50) }, ms}
	p99Reply   = aspect{"p99 of 250 after DATA", func(f figure) float64 { return float64(f.P99) }, ms}
	cpuMessage = aspect{"CPU µs/message", func(f figure) float64 { return f.cpu }, whole}
)

// values are those of a, one of each figure.
func (a aspect) values(fs []figure) []float64 {
	v := make([]float64, len(fs))
	for i, f := range fs {
		v[i] = a.of(f)
	}
	return v
}

// median is that of a over all figures.
func (a aspect) median(fs []figure) float64 { return middle(a.values(fs)) }

// ratios are those of a: of each figure to the one that was taken beside it.
func (a aspect) ratios(fs, beside []figure) []float64 {
	v := make([]float64, min(len(fs), len(beside)))
	for i := range v {
		v[i] = a.of(fs[i]) / a.of(beside[i])
	}
	return v
}

// String is a figure as progress shows it.
func (f figure) String() string {
	return fmt.Sprintf("%6.0f accepted/s  p99 %-8s %6.0f end to end/s  %4.0f µs of CPU a message", f.AcceptRate, f.P99.Round(100*time.Microsecond), f.EndRate, f.cpu)
}

// verdict prints whether a target was reached.
func verdict(what string, ok bool, detail string) {
	word := "reached"
	if !ok {
		word = "MISSED"
	}
	fmt.Printf("%-8s %s: %s\n", word, what, detail)
}
