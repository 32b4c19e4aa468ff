package main

import (
	"slices"
	"testing"
)

func TestAliveEndsWhatIsNotForgotten(t *testing.T) {
	var a alive
	var ended []string
	add := func(name string) (forget func()) { return a.add(func() { ended = append(ended, name) }) }
	add("one")
	forget := add("two")
	add("three")
	forget()
	forget() // does nothing
	a.end()
	slices.Sort(ended)
	if want := []string{"one", "three"}; !slices.Equal(ended, want) {
		t.Errorf("ended %v, want %v", ended, want)
	}
}
