package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"waybill/relay/event"
)

// rival is a VictoriaLogs that runs beside us.
type rival struct {
	cmd *exec.Cmd
	url string
	dir string
}

// postSize is how many facts go to VictoriaLogs in a request.
const (
	postSize = 2000
	posters  = 4
)

// victoriaLogs gives the facts to a VictoriaLogs, and asks it the questions.
func (b *bench) victoriaLogs(qs []question) error {
	fmt.Println("\nVictoriaLogs: building and starting it")
	v, err := startRival(b.opts.dir)
	if err != nil {
		return err
	}
	defer v.stop()
	if err := b.fillRival(v); err != nil {
		return err
	}
	fmt.Printf("\n%-46s %9s %9s %9s %9s\n", "the store (s) and VictoriaLogs (v)", "s p50 ms", "v p50 ms", "v CPU ms", "v / s")
	ahead, asked := 0, 0
	for _, q := range qs {
		if q.logsQL == nil || q.logsQL(0) == nil {
			continue
		}
		q.times = min(q.times, 60)
		f, err := measure(q, func(i int) (int, error) {
			rows := 0
			for _, text := range q.logsQL(i) {
				n, err := v.ask(text, q.after, b.end.Add(time.Second))
				if err != nil {
					return 0, err
				}
				rows += n
			}
			return rows, nil
		}, v.cpu)
		if err != nil {
			return err
		}
		mine := b.p50[q.name]
		fmt.Printf("  %-44s %9.1f %9.1f %9.1f %9.1f   %.0f rows\n", q.name, mine, f.p50, f.cpu, f.p50/max(mine, 0.001), f.rows)
		if asked++; mine < f.p50 {
			ahead++
		}
	}
	fmt.Printf("\nahead of VictoriaLogs in %d of %d questions\n\n", ahead, asked)
	return nil
}

// startRival builds VictoriaLogs at the version that .ci/victorialogs pins, in
// a module of its own, and starts it.
func startRival(dir string) (*rival, error) {
	v := &rival{dir: filepath.Join(dir, "victorialogs")}
	binary := filepath.Join(dir, "victoria-logs")
	build := exec.Command("go", "build", "-C", ".ci/victorialogs", "-o", binary, "github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs") //nolint:gosec // fixed
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("build VictoriaLogs (in the root of the repository, with its modules at hand): %w", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		return nil, err
	}
	v.url = "http://" + addr
	v.cmd = exec.Command(binary, "-storageDataPath="+v.dir, "-httpListenAddr="+addr, "-retentionPeriod=100d", "-loggerLevel=ERROR", "-search.maxQueryDuration=2m") //nolint:gosec // ours
	v.cmd.Stderr = os.Stderr
	if err := v.cmd.Start(); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		res, err := http.Get(v.url + "/health")
		if err == nil {
			_ = res.Body.Close() // only its status counts
			if res.StatusCode == http.StatusOK {
				return v, nil
			}
		}
		if time.Now().After(deadline) {
			v.stop()
			return nil, errors.New("VictoriaLogs does not answer")
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (v *rival) stop() {
	_ = v.cmd.Process.Signal(syscall.SIGTERM)
	_ = v.cmd.Wait() // it was asked to end
}

// cpu is the processor time that VictoriaLogs has taken.
func (v *rival) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

// fillRival posts the same facts, as the lines of the log, and waits until
// they can be found.
func (b *bench) fillRival(v *rival) error {
	f := newFlow(1, b.opts.events, b.start, b.opts.span)
	full, _, _ := stream(f, b.opts.events)
	posts := make(chan []byte, posters)
	errs := make(chan error, posters)
	var work sync.WaitGroup
	began, cpu := time.Now(), v.cpu()
	for range posters {
		work.Go(func() {
			for body := range posts {
				if err := v.post(body); err != nil {
					select {
					case errs <- err:
					default:
					}
				}
			}
		})
	}
	for chunk := range full {
		for len(chunk) > 0 {
			n := min(postSize, len(chunk))
			body, err := linesOf(chunk[:n])
			if err != nil {
				return err
			}
			posts <- body
			chunk = chunk[n:]
		}
	}
	close(posts)
	work.Wait()
	select {
	case err := <-errs:
		return err
	default:
	}
	took := time.Since(began)
	res, err := http.Get(v.url + "/internal/force_flush")
	if err != nil {
		return err
	}
	_ = res.Body.Close() // nothing to read
	var count int
	deadline := time.Now().Add(time.Minute)
	for count < b.opts.events && time.Now().Before(deadline) {
		rows, err := v.lines("* | stats count() n", b.start.Add(-time.Hour), b.end.Add(time.Hour))
		if err != nil {
			return err
		}
		if len(rows) == 1 {
			count, _ = strconv.Atoi(strings.Trim(strings.TrimPrefix(rows[0], `{"n":`), `"}`))
		}
	}
	if count != b.opts.events {
		return fmt.Errorf("VictoriaLogs has %d facts of %d", count, b.opts.events)
	}
	b.flow = f // identifiers are other ones in each flow
	used := v.cpu() - cpu
	size, err := diskUse(v.dir)
	if err != nil {
		return err
	}
	n := float64(b.opts.events)
	b.report("VictoriaLogs: write", fmt.Sprintf("%s, %.0f facts/s (the facts are made up meanwhile), %.2f CPU-µs a fact", took.Round(time.Millisecond), n/took.Seconds(), float64(used.Microseconds())/n))
	b.report("VictoriaLogs: on disk", fmt.Sprintf("%.1f octets a fact", float64(size)/n))
	b.report("VictoriaLogs: rss, total/anonymous", fmt.Sprintf("%d / %d MiB", memoryOf(strconv.Itoa(v.cmd.Process.Pid), "VmRSS")>>10, memoryOf(strconv.Itoa(v.cmd.Process.Pid), "RssAnon")>>10))
	return nil
}

func linesOf(recs []event.Record) ([]byte, error) {
	out := make([]byte, 0, 1000*len(recs))
	var err error
	for i := range recs {
		if out, err = recs[i].AppendJSON(out); err != nil {
			return nil, err
		}
		out = append(out, '\n')
	}
	return out, nil
}

func (v *rival) post(body []byte) error {
	res, err := http.Post(v.url+"/insert/jsonline?_stream_fields=node&_time_field=ts&_msg_field=event", "application/stream+json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }() // read whole
	said, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("VictoriaLogs: %s: %.200s", res.Status, said)
	}
	return err
}

func (v *rival) ask(text string, from, to time.Time) (rows int, err error) {
	list, err := v.lines(text, from, to)
	return len(list), err
}

// lines asks a query in LogsQL over a range of time.
func (v *rival) lines(text string, from, to time.Time) ([]string, error) {
	form := url.Values{"query": {text}, "start": {from.Format(time.RFC3339Nano)}, "end": {to.Format(time.RFC3339Nano)}}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, v.url+"/select/logsql/query", strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }() // read whole
	var list []string
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		list = append(list, lines.Text())
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("VictoriaLogs: %s to %s: %.300q", res.Status, text, list)
	}
	return list, lines.Err()
}
