package app

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"waybill/cmd/internal/config"
	"waybill/relay/wire"
)

// TestExtensionWords: the words of the configuration are those that the wire knows.
func TestExtensionWords(t *testing.T) {
	defaults, others := wire.ExtensionNames()
	for field, want := range map[string][]string{"Disable": defaults, "Enable": others} {
		f, _ := reflect.TypeFor[config.Protocol]().FieldByName(field)
		if got := strings.Split(f.Tag.Get("enum"), ","); !slices.Equal(got, want) {
			t.Errorf("protocol.%s may be %q, want %q", strings.ToLower(field), got, want)
		}
	}
}
