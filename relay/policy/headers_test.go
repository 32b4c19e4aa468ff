package policy

import "testing"

func TestTrustedField(t *testing.T) {
	for _, test := range []struct {
		name      string
		start     string
		is, known bool
	}{
		{"another field", "Subject: x", false, true},
		{"of the organisation", "X-MS-Exchange-Organization-SCL: -1", true, true},
		{"of the forest", "x-ms-exchange-FOREST-RulesExecuted: x", true, true},
		{"all of the beginning", "X-MS-Exchange-Organization-", true, true},
		{"cut off", "X-MS-Exchange-Org", false, false},
		{"one octet", "x", false, false},
		{"another of Exchange", "X-MS-Exchange-CrossTenant-Id: x", false, true},
		{"no part of a name", "X-MS-Exchange-Organization : x", false, true},
		{"nothing", "", false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if is, known := TrustedField([]byte(test.start)); is != test.is || known != test.known {
				t.Errorf("TrustedField(%q) = %t, %t, want %t, %t", test.start, is, known, test.is, test.known)
			}
		})
	}
}
