package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a time with units, such as "30s", "1h30m" or "30d".
type Duration time.Duration

// Units of [Duration] that package time does not have.
const (
	Day  = Duration(24 * time.Hour)
	Week = 7 * Day
)

var durationUnits = []struct {
	name string
	unit Duration
}{
	{"w", Week}, {"d", Day}, {"h", Duration(time.Hour)}, {"m", Duration(time.Minute)}, {"s", Duration(time.Second)}, {"ms", Duration(time.Millisecond)},
}

// maxDuration is ten years: beyond it a number is a slip.
const maxDuration = 3650 * Day

// ParseDuration reads a sum of whole numbers with units, such as "1h30m". The
// units are w, d, h, m, s and ms.
func ParseDuration(s string) (Duration, error) {
	if s == "0" {
		return 0, nil
	}
	rest, sum := s, Duration(0)
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		letters := len(rest[digits:]) - len(strings.TrimLeft(rest[digits:], "abcdefghijklmnopqrstuvwxyz"))
		word := rest[digits : digits+letters]
		n, err := strconv.ParseInt(rest[:digits], 10, 32)
		unit := Duration(0)
		for _, u := range durationUnits {
			if u.name == word {
				unit = u.unit
			}
		}
		switch {
		case err == nil && word == "":
			return 0, fmt.Errorf("%q has no unit: write %ss, %sm or %sh", s, rest[:digits], rest[:digits], rest[:digits])
		case err != nil || unit == 0:
			return 0, fmt.Errorf("%q is not a duration such as 30s, 5m, 1h30m or 30d", clip(s))
		}
		if sum += Duration(n) * unit; sum > maxDuration || Duration(n) > maxDuration/unit {
			return 0, fmt.Errorf("%q is longer than ten years", clip(s))
		}
		rest = rest[digits+letters:]
	}
	if s == "" {
		return 0, errors.New("empty; write a duration such as 30s, 5m, 1h30m or 30d")
	}
	return sum, nil
}

// String is the duration in the largest units that fit, such as "30d" or "1h30m".
func (d Duration) String() string {
	if d <= 0 {
		return "0s"
	}
	var b strings.Builder
	for _, u := range durationUnits[1:] {
		if n := d / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d -= n * u.unit
		}
	}
	return b.String()
}

// UnmarshalText is [ParseDuration].
func (d *Duration) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDuration(string(text))
	return err
}

// MarshalText writes [Duration.String].
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Size is a number of octets with a unit, such as "36MiB".
type Size int64

// Units of [Size].
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

var sizeUnits = []struct {
	name string
	unit Size
}{
	{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// ParseSize reads a whole number with a unit: B, KiB, MiB, GiB, TiB, or the
// decimal kB, MB, GB, TB.
func ParseSize(s string) (Size, error) {
	if s == "0" {
		return 0, nil
	}
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	n, err := strconv.ParseInt(s[:digits], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size such as 256KiB, 36MiB or 1GiB", clip(s))
	}
	word := strings.TrimSpace(s[digits:])
	for _, u := range sizeUnits {
		if u.name != word {
			continue
		}
		if n > int64(1<<50/u.unit) {
			return 0, fmt.Errorf("%q is larger than 1024 TiB", clip(s))
		}
		return Size(n) * u.unit, nil
	}
	if word == "" {
		return 0, fmt.Errorf("%q has no unit: write %dKiB, %dMiB or %dB", s, n, n, n)
	}
	return 0, fmt.Errorf("%q is not a size such as 256KiB, 36MiB or 1GiB", clip(s))
}

// String is the size in the largest unit that gives a whole number.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if s != 0 && s%u.unit == 0 {
			return fmt.Sprintf("%d%s", s/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%dB", int64(s))
}

// UnmarshalText is [ParseSize].
func (s *Size) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSize(string(text))
	return err
}

// MarshalText writes [Size.String].
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
