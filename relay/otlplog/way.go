package otlplog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"
)

// Bounds of what a collector says, by taste.
const (
	maxResponse   = 64 << 10
	maxRetryAfter = time.Minute
)

// way is the way to the collector, under the library's client. It adds header
// fields, notes how it went, and makes the library try again when nobody
// answers, which it does for few errors by itself. It is used by one goroutine.
type way struct {
	transport *http.Transport
	header    func() (http.Header, error)
	tell      func(error)

	again    bool   // the latest failure may pass
	rejected uint64 // records that the collector did not take of a request that it took
}

func newWay(opts Options, tell func(error)) *way {
	return &way{
		header: opts.Header, tell: tell,
		transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: opts.TLS, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
			MaxIdleConns: 2, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: maxResponse,
		},
	}
}

// client is a client on that way. It follows no redirects: header fields would
// go to somebody else.
func (w *way) client(timeout time.Duration) *http.Client {
	return &http.Client{
		Transport: w, Timeout: timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (w *way) reset() { w.again, w.rejected = false, 0 }

func (w *way) close() { w.transport.CloseIdleConnections() }

// RoundTrip sends a request.
func (w *way) RoundTrip(req *http.Request) (*http.Response, error) {
	w.reset()
	resp, err := w.roundTrip(req)
	if err != nil {
		w.again = true
		if req.Context().Err() == nil {
			w.tell(err)
		}
		return nil, passing{err}
	}
	return resp, nil
}

func (w *way) roundTrip(req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	if w.header != nil {
		header, err := w.header()
		if err != nil {
			_ = req.Body.Close() // it is in memory
			return nil, err
		}
		maps.Copy(out.Header, header)
	}
	resp, err := w.transport.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 200 && resp.StatusCode <= 299 {
		w.taken(resp)
		return resp, nil
	}
	// Not what else it says: it may repeat our header fields.
	w.tell(fmt.Errorf("the collector answers %d %s", resp.StatusCode, http.StatusText(resp.StatusCode)))
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout: // OTLP 1.x, "Retryable Response Codes"
		w.again = true
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || s < 0 || time.Duration(s) > maxRetryAfter/time.Second {
			resp.Header.Del("Retry-After") // nobody decides for us to wait for hours
		}
	}
	return resp, nil
}

// taken reads what a collector says that took a request: it may have left out
// some records (OTLP 1.x, "Partial Success").
func (w *way) taken(resp *http.Response) {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
	resp.Body = io.NopCloser(bytes.NewReader(nil))
	if err != nil || len(body) > maxResponse || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-protobuf") {
		return // the facts are there; sending them again would double them
	}
	var said collector.ExportLogsServiceResponse
	if proto.Unmarshal(body, &said) != nil {
		return
	}
	if n := said.GetPartialSuccess().GetRejectedLogRecords(); n > 0 {
		w.rejected = uint64(n)
		w.tell(fmt.Errorf("the collector refused %d records: %.200q", n, said.GetPartialSuccess().GetErrorMessage()))
	}
}

// passing is an error that may pass, as the library asks for it.
type passing struct{ error }

// Temporary says so.
func (passing) Temporary() bool { return true }

// Unwrap is the error.
func (p passing) Unwrap() error { return p.error }

// maxHeader bounds a file with header fields.
const maxHeader = 64 << 10

// ParseHeader reads header fields, "Name: value", one a line; empty lines and
// those that begin with # are passed over. No error holds a value.
func ParseHeader(text string) (http.Header, error) {
	if len(text) > maxHeader {
		return nil, fmt.Errorf("more than %d octets", maxHeader)
	}
	header := http.Header{}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch {
		case !ok || !token(name) || value == "":
			return nil, fmt.Errorf("line %d is not of the form \"Name: value\"", n)
		case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }):
			return nil, fmt.Errorf("line %d: the value is not printable ASCII", n)
		case reserved(name):
			return nil, fmt.Errorf("line %d: %s is set by OTLP", n, name)
		}
		header.Add(name, value)
	}
	if len(header) == 0 {
		return nil, errors.New("there is no header field")
	}
	return header, nil
}

func reserved(name string) bool {
	switch http.CanonicalHeaderKey(name) {
	case "Content-Type", "Content-Encoding", "Content-Length", "Transfer-Encoding", "Host", "Connection":
		return true
	}
	return false
}

// token reports whether s is one (RFC 9110 section 5.6.2).
func token(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}
