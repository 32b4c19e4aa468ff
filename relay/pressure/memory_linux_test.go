package pressure

import "testing"

func TestParseResident(t *testing.T) {
	for _, test := range []struct {
		name string
		text string
		want int64 // -1: an error
	}{
		{"usual", "Name:\twaybill\nVmRSS:\t  999 kB\nRssAnon:\t     100 kB\nRssFile:\t  5000 kB\nRssShmem:\t       4 kB\n", 104 << 10},
		{"an old kernel", "VmRSS:\t 1 kB\n", -1},
		{"no number", "RssAnon:\t kB\n", -1},
		{"empty", "", -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseResident([]byte(test.text))
			if err != nil {
				got = -1
			}
			if got != test.want {
				t.Errorf("parseResident = %d (%v), want %d", got, err, test.want)
			}
		})
	}
}
