package app

import (
	"testing"

	"waybill/cmd/internal/config"
)

func TestConnectorsHaveTheirResolvers(t *testing.T) {
	r := &routes{}
	defer func() { _ = r.own.close() }()
	c := config.Default()
	for _, test := range []struct {
		name    string
		servers []string
		want    string // the server that is asked; empty: that of all
	}{
		{"none of its own", nil, ""},
		{"its own", []string{"192.0.2.53"}, "192.0.2.53:53"},
		{"another", []string{"192.0.2.54:5353"}, "192.0.2.54:5353"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := config.SendConnector{Name: "out", DNSServers: test.servers}
			got, err := r.resolverOf(c, &s)
			if err != nil {
				t.Fatal(err)
			}
			again, err := r.resolverOf(c, &s)
			if err != nil || again != got {
				t.Errorf("a second look gives another resolver, %v", err)
			}
			if test.want == "" {
				if got != r.resolver {
					t.Error("it has a resolver of its own")
				}
				return
			}
			if servers := got.Servers(); len(servers) != 1 || servers[0] != test.want {
				t.Errorf("asks %v, want %s", servers, test.want)
			}
		})
	}
}
