package reuse

import (
	"bytes"
	"testing"
)

func TestSpoil(t *testing.T) {
	for _, test := range []struct {
		name string
		room []byte
	}{
		{"none", nil},
		{"all of it", []byte("secret")},
		{"what is beyond the length", []byte("secret")[:0]},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := bytes.Clone(test.room[:cap(test.room)])
			if Spoils {
				want = bytes.Repeat([]byte{Octet}, cap(test.room))
			}
			Spoil(test.room)
			if got := test.room[:cap(test.room)]; !bytes.Equal(got, want) {
				t.Errorf("%q is left, want %q", got, want)
			}
		})
	}
}
