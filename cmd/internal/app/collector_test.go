package app

import "testing"

func TestCollectPercent(t *testing.T) {
	for _, test := range []struct {
		name string
		live uint64
		want int
	}{
		{"nothing", 0, 100},
		{"little", 14 << 20, 100},
		{"a little more", 20 << 20, 70},
		{"a short queue", 120 << 20, 50},
		{"just enough", 512 << 20, 50},
		{"a long queue", 800 << 20, 32},
		{"a very long one", 8 << 30, 25},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := collectPercent(test.live); got != test.want {
				t.Errorf("collectPercent(%d) = %d, want %d", test.live, got, test.want)
			}
		})
	}
}
