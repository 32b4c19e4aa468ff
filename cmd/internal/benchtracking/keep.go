package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"slices"
	"time"
)

// kept is what a later run must know of a store to ask it the same questions.
type kept struct {
	Events int
	Span   time.Duration
	Start  time.Time
	End    time.Time
	Sample [][4]string // sender, recipient, Message-ID, queue ID
}

func (b *bench) keptPath() string { return filepath.Join(b.opts.dir, "benchtracking.json") }

// remember writes beside the store what restore reads.
func (b *bench) remember() error {
	k := kept{Events: b.opts.events, Span: b.opts.span, Start: b.start, End: b.end}
	for _, s := range b.flow.sample {
		k.Sample = append(k.Sample, [4]string{s.sender, s.recipient, s.messageID, s.queueID})
	}
	text, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return os.WriteFile(b.keptPath(), text, 0o600)
}

// restore takes up what an earlier run has left.
func (b *bench) restore() error {
	text, err := os.ReadFile(b.keptPath())
	if err != nil {
		return fmt.Errorf("no store to ask again: %w", err)
	}
	var k kept
	if err := json.Unmarshal(text, &k); err != nil {
		return fmt.Errorf("%s: %w", b.keptPath(), err)
	}
	b.opts.events, b.opts.span, b.start, b.end = k.Events, k.Span, k.Start, k.End
	b.flow = newFlow(1, k.Events, k.Start, k.Span)
	for _, s := range k.Sample {
		b.flow.sample = append(b.flow.sample, known{s[0], s[1], s[2], s[3]})
	}
	fmt.Printf("%d facts of %s of mail, in %s since an earlier run\n", k.Events, k.Span, b.dir)
	return nil
}

// chosen are the questions that are asked.
func (b *bench) chosen() ([]question, error) {
	only, err := regexp.Compile(b.opts.only)
	if err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}
	return slices.DeleteFunc(b.questions(), func(q question) bool { return !only.MatchString(q.name) }), nil
}

func heapTo(path string) error {
	if path == "" {
		return nil
	}
	f, err := os.Create(path) //nolint:gosec // named by the user
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // a profile
	return pprof.Lookup("heap").WriteTo(f, 0)
}
