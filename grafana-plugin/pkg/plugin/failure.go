package plugin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/grafana/grafana-plugin-sdk-go/backend"
	"github.com/grafana/grafana-plugin-sdk-go/backend/httpclient"

	"waybill/logtrack/trackapi"
)

// queryError is a query that cannot be answered as it stands.
type queryError struct{ text string }

func (e *queryError) Error() string { return e.text }

func badQuery(format string, args ...any) error {
	return &queryError{fmt.Sprintf(format, args...)}
}

// failure makes the response for err.
func (d *Datasource) failure(err error) backend.DataResponse {
	status, source, text := d.explain(err)
	return backend.ErrDataResponseWithSource(status, source, text)
}

// explain is the one place that decides whose failure err is, with which
// status, and what the user reads: what went wrong and what to do.
//
// A wrong query and a relay that does not answer are downstream; only a fault
// in this plugin is ours.
func (d *Datasource) explain(err error) (backend.Status, backend.ErrorSource, string) {
	const downstream = backend.ErrorSourceDownstream
	var (
		query   *queryError
		problem *trackapi.Problem
		network net.Error
		cert    *tls.CertificateVerificationError
		syntax  *json.SyntaxError
		shape   *json.UnmarshalTypeError
	)
	switch {
	case errors.As(err, &query):
		return backend.StatusBadRequest, downstream, query.text
	case errors.As(err, &problem):
		return d.explainProblem(problem)
	case errors.Is(err, httpclient.ErrResponseBodyTooLarge):
		return backend.StatusBadGateway, downstream, fmt.Sprintf("the answer is larger than %d MiB: narrow the time range or the filters, or lower the limit", maxResponse>>20)
	case errors.As(err, &syntax), errors.As(err, &shape), errors.Is(err, io.ErrUnexpectedEOF) && !isRequest(err):
		return backend.StatusBadGateway, downstream, fmt.Sprintf("the %v cannot be read: does the URL lead to Waybill, and is it of a version that fits this plugin?", err)
	case errors.Is(err, context.Canceled):
		return backend.Status(499), downstream, "the query was cancelled"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return backend.StatusTimeout, downstream, "Waybill at " + d.base + " did not answer in time: narrow the time range or the filters, or raise the timeout of the data source"
	case errors.As(err, &cert), isUnknownAuthority(err):
		return backend.StatusBadGateway, downstream, fmt.Sprintf("the certificate of %s is not trusted (%v): add its CA in the settings of the data source", d.base, cause(err))
	case errors.Is(err, http.ErrSchemeMismatch):
		return backend.StatusBadGateway, downstream, "Waybill at " + d.base + " does not speak TLS: use http:// in the URL, or give its HTTP side a certificate"
	case backend.IsDownstreamHTTPError(err), errors.As(err, &network):
		return backend.StatusBadGateway, downstream, fmt.Sprintf("Waybill does not answer at %s (%v): is it running, and does its http.listen accept connections from Grafana's host?", d.base, cause(err))
	case backend.IsDownstreamError(err):
		return backend.StatusBadGateway, downstream, err.Error()
	}
	return backend.StatusInternal, backend.ErrorSourcePlugin, err.Error()
}

func (d *Datasource) explainProblem(p *trackapi.Problem) (backend.Status, backend.ErrorSource, string) {
	status, text := backend.Status(p.Status), p.Error()
	switch {
	case p.Status == http.StatusUnauthorized:
		text = "Waybill refuses the token (401): enter one of its tokens_file with the role viewer in the settings of the data source"
	case p.Status == http.StatusForbidden:
		text = "the token may not do this (403): it needs at least the role viewer"
	case p.Status == http.StatusTooManyRequests:
		text = "Waybill is busy with other queries: " + text
	case p.Status >= 500:
		status, text = backend.StatusBadGateway, "Waybill failed to answer: "+text
	case p.Status < 400:
		status, text = backend.StatusBadGateway, fmt.Sprintf("%s answers with a redirect (%d): enter the address it leads to as the URL", d.base, p.Status)
	}
	return status, backend.ErrorSourceDownstream, text
}

func isUnknownAuthority(err error) bool {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	return errors.As(err, &unknown) || errors.As(err, &host)
}

// isRequest tells whether err is of the HTTP client, and not of reading an answer.
func isRequest(err error) bool {
	var request *url.Error
	return errors.As(err, &request)
}

// cause is the inner error, without the request that Go's HTTP client repeats:
// its URL holds what was searched for.
func cause(err error) error {
	var op *net.OpError
	var request *url.Error
	switch {
	case errors.As(err, &op):
		return op.Err
	case errors.As(err, &request):
		return request.Err
	}
	return err
}
