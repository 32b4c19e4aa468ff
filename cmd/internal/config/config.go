// Package config reads the configuration file.
//
// It exists so that an operator's mistake is met by a sentence and not by a
// surprise: [Load] reports every problem at once, each with its line, and what
// is likely to be meant. It promises that no key is silently ignored, that a
// configuration which would be an open relay is refused, that what the file does
// not say has a safe default, and that no secret is printed.
//
// The configuration is plain data. To add a key, add a field with its tags to
// the structs in this file and its default to [Default] or to the presets; the
// reader, the writer and the reference follow. To add a check, add it to
// check.go, and a file to testdata/bad.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"waybill/relay/auth"
)

// Config is a configuration, complete with defaults. The tags of its fields:
// yaml is the key, doc its meaning, type and default how the reference words
// them where the Go type does not tell, enum the words that it may have, min and
// max the bounds of a number, file marks a file name, which is relative to the
// configuration file, and required a key without a default.
type Config struct {
	Hostname        string                 `yaml:"hostname" doc:"our name in greetings, EHLO, Received fields and reports; it should resolve to our address" default:"the machine's name"`
	DataDir         string                 `yaml:"data_dir" file:"true" doc:"where the queue and the tracking store are kept"`
	Postmaster      string                 `yaml:"postmaster" doc:"where mail to \"postmaster\" without a domain goes (RFC 5321 section 4.5.1)" default:"postmaster at the first accepted domain"`
	Certificates    map[string]Certificate `yaml:"certificates" doc:"TLS certificates by name. They are read again when their files change"`
	Directories     map[string]Directory   `yaml:"directories" doc:"LDAP directories by name, Active Directory among them"`
	Users           Users                  `yaml:"users" doc:"who may log in"`
	Receive         []ReceiveConnector     `yaml:"receive_connectors" doc:"where mail comes in; at least one"`
	Pickup          Pickup                 `yaml:"pickup" doc:"a directory that files are taken from as messages"`
	AcceptedDomains []AcceptedDomain       `yaml:"accepted_domains" doc:"domains that mail is taken for from strangers"`
	PresetsFile     string                 `yaml:"presets_file" file:"true" doc:"presets of send connectors instead of those built in, in the form that waybill config presets writes" default:"those built in"`
	Send            []SendConnector        `yaml:"send_connectors" doc:"where mail goes out. For each recipient, of those that are for the message, a connector that is linked to the receive connector wins, then the one with the most specific address space, then the one that names the sender most closely, then the lowest cost, then the first name. When its next hop cannot be reached, the next one with the same address space takes its place"`
	Throttles       []Throttle             `yaml:"throttles" doc:"limits on what clients may send, beside the limits of each receive connector"`
	BackPressure    BackPressure           `yaml:"back_pressure" doc:"when the relay is short of something: at which marks it slows down, and refuses"`
	TLSReports      TLSReports             `yaml:"tls_reports" doc:"daily reports to domains about TLS with their mail exchangers (RFC 8460)"`
	Backoff         Backoff                `yaml:"backoff" doc:"what is done about next hops that ask for less mail"`
	Reports         Reports                `yaml:"reports" doc:"reports to senders (DSN), and who gets none"`
	Replies         Replies                `yaml:"replies" doc:"how replies of next hops are understood"`
	DNS             DNS                    `yaml:"dns" doc:"how other domains are looked up"`
	Blocklists      Blocklists             `yaml:"blocklists" doc:"DNS blocklists that are watched for our own addresses"`
	Queue           Queue                  `yaml:"queue" doc:"the queue of undelivered mail"`
	Tracking        Tracking               `yaml:"tracking" doc:"the message-tracking store"`
	HTTP            HTTP                   `yaml:"http" doc:"metrics, health, queue control and the tracking API"`
	Log             Log                    `yaml:"log" doc:"the protocol log"`
	Telemetry       Telemetry              `yaml:"telemetry" doc:"the protocol log as OpenTelemetry logs, beside its lines"`
	name            string
	positions       map[string]position
	presets         *SendPresets
}

// Certificate names the files of a certificate.
type Certificate struct {
	CertFile string `yaml:"cert_file" file:"true" required:"true" doc:"PEM file of the certificate and its chain"`
	KeyFile  string `yaml:"key_file" file:"true" required:"true" doc:"PEM file of the key"`
}

// ReceiveConnector is a listener for one kind of client.
type ReceiveConnector struct {
	Name              string          `yaml:"name" required:"true" doc:"name in logs and metrics; it is part of what dashboards and alerts refer to"`
	Usage             string          `yaml:"usage" enum:"internet,client,internal,partner,device,custom" doc:"preset of the other keys, see Presets"`
	Listen            []string        `yaml:"listen" doc:"addresses and ports. Connectors may share one: the most specific of their remote ranges wins"`
	RemoteRanges      []string        `yaml:"remote_ranges" doc:"networks and addresses of the clients that this connector is for"`
	RelayPublicRanges bool            `yaml:"relay_public_ranges" doc:"confirms that every public address in remote_ranges is yours, so that it may relay without a login. Networks larger than an IPv4 /16 or an IPv6 /32 are refused all the same"`
	ProxyProtocol     Proxy           `yaml:"proxy_protocol" doc:"load balancers in front of us"`
	XClient           XClient         `yaml:"xclient" doc:"proxies and filters in front of us that speak SMTP"`
	Hostname          string          `yaml:"hostname" doc:"our name to these clients: in the greeting, EHLO and Received fields" default:"hostname of the file"`
	Banner            string          `yaml:"banner" doc:"text of the greeting, after our name" default:"\"ESMTP Waybill\""`
	TLS               ReceiveTLS      `yaml:"tls" doc:"encryption"`
	Auth              Auth            `yaml:"auth" doc:"logging in (RFC 4954)"`
	Permissions       []string        `yaml:"permissions" enum:"submit,relay,any_sender,bypass_filters,bypass_size,keep_headers" doc:"what clients may do: hand in mail for accepted domains; for any domain; as any sender; past the filters, of which there are none yet; past the size limit; with the header fields of servers of one Exchange organisation (X-MS-Exchange-Organization-*, X-MS-Exchange-Forest-*), which are removed otherwise"`
	BareNewline       string          `yaml:"bare_newline" enum:"reject,normalise" doc:"what becomes of a message with a CR or LF that is not part of a CRLF: refused, or repaired for devices that know no better"`
	Protocol          Protocol        `yaml:"protocol" doc:"what is announced and taken of SMTP"`
	Headers           Headers         `yaml:"headers" doc:"what becomes of header sections"`
	Priority          ReceivePriority `yaml:"priority" doc:"how urgent messages are whose sender gives no MT-PRIORITY, or 0 (RFC 6710); what that means is in queue.priorities"`
	Limits            Limits          `yaml:"limits" doc:"what one client, or all, may use"`
	Transcript        Transcript      `yaml:"transcript" doc:"what both sides said"`
}

// Proxy is who may name the client by the PROXY protocol.
type Proxy struct {
	Trusted []string `yaml:"trusted" doc:"networks and addresses of load balancers that speak the PROXY protocol (version 1 or 2). From them its header is needed, and the client that it names counts for remote_ranges, limits and records; from others it is refused"`
	Timeout Duration `yaml:"timeout" doc:"wait for the header"`
}

// XClient is who may name the client by XCLIENT.
type XClient struct {
	Trusted []string `yaml:"trusted" doc:"networks and addresses of SMTP clients that may use XCLIENT, as Postfix documents it, to say for whom they speak: address, name and login. The connector is then chosen anew, among those that list the same client"`
}

// ReceiveTLS is how a receive connector speaks TLS.
type ReceiveTLS struct {
	Mode              string   `yaml:"mode" enum:"off,starttls,implicit" doc:"none, on request, or from the first octet (port 465)" default:"starttls when there is a certificate, else off"`
	Required          bool     `yaml:"required" doc:"no login and no mail without TLS"`
	Certificate       string   `yaml:"certificate" doc:"name of the certificate; clients that ask for another name get the certificate that has it" default:"\"default\", or the only one"`
	MinVersion        string   `yaml:"min_version" enum:"1.0,1.1,1.2,1.3" doc:"oldest TLS version; 1.0 and 1.1, and the ciphers of their time, for usage: device alone"`
	ClientCertificate string   `yaml:"client_certificate" enum:"none,request,require" doc:"whether clients show a certificate: no; if they like, and whose it is gets recorded; or only those get in that have one from client_ca_file"`
	ClientCAFile      string   `yaml:"client_ca_file" file:"true" doc:"PEM file of the authorities that client certificates are from"`
	ClientNames       []string `yaml:"client_names" doc:"names of which a client's certificate must have one, such as \"mail.partner.example\", or \"*.partner.example\" for its sub-domains. With client_certificate: request the record says whether it has" default:"any name"`
}

// Auth is how clients of a receive connector log in.
type Auth struct {
	Required       bool     `yaml:"required" doc:"no mail without a login"`
	Mechanisms     []string `yaml:"mechanisms" mechanism:"true" type:"list of SASL mechanisms: PLAIN, LOGIN, SCRAM-SHA-256, SCRAM-SHA-256-PLUS, XOAUTH2, OAUTHBEARER, EXTERNAL, GSSAPI, NTLM" doc:"SASL mechanisms that are offered; those for which there are no users are left out"`
	BeforeTLS      bool     `yaml:"before_tls" doc:"offers them without TLS too: passwords then cross the network in clear"`
	Certificate    bool     `yaml:"certificate" doc:"logs clients in by the TLS certificate that they show, without AUTH, as users.certificates knows it"`
	ChannelBinding string   `yaml:"channel_binding" enum:"off,allow,require" doc:"whether logins are bound to their TLS channel (RFC 5056), so that nobody in the middle can pass one on: never; by clients that can; always, with mechanisms that can"`
}

// Limits bound the clients of a receive connector. Zero means no limit, where
// the reference does not say otherwise.
type Limits struct {
	Connections          int      `yaml:"connections" min:"0" max:"1000000" doc:"connections at once"`
	ConnectionsPerSource int      `yaml:"connections_per_source" min:"0" max:"1000000" doc:"connections at once of one IPv4 address or IPv6 /64"`
	MessagesPerMinute    int      `yaml:"messages_per_minute" min:"0" max:"10000000" doc:"messages a minute, counted by rate_by; 0 is no limit"`
	RateBy               string   `yaml:"rate_by" enum:"source,user,both" doc:"what messages_per_minute counts: each address, each user, or each of them"`
	Recipients           int      `yaml:"recipients" min:"1" max:"100000" doc:"recipients of a message; RFC 5321 section 4.5.3.1.8 asks for 100 at least. The queue has room for some 3,000 of a message, and refuses more with 452 4.5.3 after the content"`
	MessageSize          Size     `yaml:"message_size" doc:"octets of a message"`
	HeaderSize           Size     `yaml:"header_size" doc:"octets of a message's header section"`
	HeaderFields         int      `yaml:"header_fields" min:"10" max:"100000" doc:"fields of a message's header section"`
	Hops                 int      `yaml:"hops" min:"1" max:"1000" doc:"Received fields of a message; more are a loop"`
	ProtocolErrors       int      `yaml:"protocol_errors" min:"0" max:"1000" doc:"errors after which a session is ended"`
	AuthFailures         int      `yaml:"auth_failures" min:"1" max:"20" doc:"failed logins after which a session is ended"`
	Tarpit               Duration `yaml:"tarpit" doc:"delay of refusals to clients that have not logged in; 0s is none"`
	CommandTimeout       Duration `yaml:"command_timeout" doc:"wait for the next command; RFC 5321 section 4.5.3.2.7 asks for 5 minutes"`
	SessionTimeout       Duration `yaml:"session_timeout" doc:"wait for progress of a session as a whole"`
}

// Protocol is what a receive connector announces and takes of SMTP.
type Protocol struct {
	Disable      []string `yaml:"disable" enum:"PIPELINING,SIZE,8BITMIME,SMTPUTF8,CHUNKING,DSN,REQUIRETLS,MT-PRIORITY,LIMITS,ENHANCEDSTATUSCODES" doc:"extensions that are neither announced nor taken"`
	Enable       []string `yaml:"enable" enum:"BINARYMIME,FUTURERELEASE,DELIVERBY" doc:"extensions that are announced only here: binary content (RFC 3030), which is converted where the next hop does not take it, as downgrade of the send connector says; and mail that asks to be held, up to 7 days (RFC 4865); and mail that is to be delivered by a time, or to come back, or its sender to hear of it (RFC 2852): few next hops know that, and what must come back in time is not given to others"`
	VRFY         string   `yaml:"vrfy" enum:"noncommittal,refuse" doc:"whether VRFY is answered 252, which tells nothing, or 502"`
	LenientPaths bool     `yaml:"lenient_paths" doc:"takes what old devices write: MAIL FROM and RCPT TO without angle brackets"`
}

// Headers is what a receive connector does with header sections.
type Headers struct {
	Complete  bool   `yaml:"complete" doc:"adds Date, Message-ID and From where they are missing (RFC 6409 section 8), and the empty line to text without a header section: for mail that begins here"`
	EightBit  string `yaml:"eight_bit" enum:"accept,reject" doc:"what becomes of mail with 8-bit octets in its header section that was sent without SMTPUTF8"`
	Malformed string `yaml:"malformed" enum:"accept,reject" doc:"what becomes of mail with lines in its header section that are no field, or with two of From, Date, Message-ID or Subject"`
}

// Pickup is a directory that files are taken from as messages.
type Pickup struct {
	Dir            string   `yaml:"dir" file:"true" doc:"the directory; without it nothing is picked up. Who may write into it may send mail, so it must not be open to everybody"`
	Name           string   `yaml:"name" doc:"name in logs and metrics, as that of a receive connector"`
	Permissions    []string `yaml:"permissions" enum:"submit,relay,bypass_filters,bypass_size,keep_headers" doc:"what its messages may do, as those of receive connectors"`
	Senders        []string `yaml:"senders" doc:"addresses and domains that messages may be from; without them all"`
	FilesPerMinute int      `yaml:"files_per_minute" min:"0" max:"1000000" doc:"files that are taken in a minute; 0 is no limit"`
	MessageSize    Size     `yaml:"message_size" doc:"octets of a message"`
	Recipients     int      `yaml:"recipients" min:"1" max:"100000" doc:"recipients of a message"`
	Settle         Duration `yaml:"settle" doc:"a file is taken when it has not changed for so long"`
}

// AcceptedDomain is a domain that mail is taken for from strangers.
type AcceptedDomain struct {
	Domain     string     `yaml:"domain" required:"true" doc:"the domain"`
	Type       string     `yaml:"type" enum:"authoritative,internal_relay,external_relay" doc:"whether all its recipients are behind us, some are elsewhere inside, or it belongs to somebody else"`
	Subdomains bool       `yaml:"subdomains" doc:"all its sub-domains too"`
	Recipients Recipients `yaml:"recipients" doc:"which recipients there are"`
}

// Recipients says which recipients a domain has: by one of file, ldap and probe.
// Without any, all are taken.
type Recipients struct {
	File         string         `yaml:"file" file:"true" doc:"text file of its recipients, one address a line; others are refused with 550 5.1.1. Without file, ldap and probe all are taken"`
	LDAP         RecipientsLDAP `yaml:"ldap" doc:"asks a directory"`
	Probe        bool           `yaml:"probe" doc:"asks the next hop that mail for the recipient would go to (MAIL, RCPT, and no content)"`
	Unavailable  string         `yaml:"unavailable" enum:"accept,defer" doc:"what becomes of recipients when ldap or probe has no answer: accepted, or refused with 450 4.1.1 until there is one" default:"accept with probe, else defer"`
	Timeout      Duration       `yaml:"timeout" doc:"wait for an answer"`
	Cache        Duration       `yaml:"cache" doc:"how long a recipient that exists is remembered; 0s is not at all"`
	CacheUnknown Duration       `yaml:"cache_unknown" doc:"how long one that does not exist is remembered; 0s is not at all"`
	Questions    int            `yaml:"questions" min:"1" max:"1000" doc:"questions at once"`
}

// SendConnector is a way out for some domains.
type SendConnector struct {
	Name            string         `yaml:"name" required:"true" doc:"name in logs and metrics"`
	Preset          string         `yaml:"preset" doc:"a service that is known: defaults of the other keys, see Services" default:"none"`
	Disabled        bool           `yaml:"disabled" doc:"takes it out of routing; its mail goes to the next best connector"`
	AddressSpaces   []Space        `yaml:"address_spaces" required:"true" doc:"which recipients it is for"`
	Linked          []string       `yaml:"receive_connectors" doc:"takes only what came in by these receive connectors, and takes it before all others" default:"all"`
	Senders         []string       `yaml:"senders" doc:"takes only mail of these senders: \"user@example.com\", \"example.com\", \"*.example.com\" for its sub-domains, and not itself, or \"<>\" for reports" default:"all"`
	Users           []string       `yaml:"users" doc:"takes only mail of clients that logged in by these names" default:"all"`
	Route           string         `yaml:"route" enum:"mx,smart_hosts" doc:"by the MX records of the recipient's domain, or through smart hosts" default:"smart_hosts when there are any, else mx"`
	SmartHosts      []SmartHost    `yaml:"smart_hosts" doc:"hosts to send through: \"host\", \"host:port\" or {host: …, cost: …}"`
	Auth            SendAuth       `yaml:"auth" doc:"logging in at the smart hosts"`
	TLS             SendTLS        `yaml:"tls" doc:"encryption"`
	DNSServers      []string       `yaml:"dns_servers" doc:"recursive name servers that this connector asks; MTA-STS policies are looked up at dns.servers all the same" default:"dns.servers"`
	SourceAddresses []string       `yaml:"source_addresses" doc:"our addresses to send from. Each next hop keeps to one of them, of the family of its own address, as long as this machine has it" default:"the system's choice"`
	Downgrade       Downgrade      `yaml:"downgrade" doc:"hosts that do not take content as it is: 8-bit content without 8BITMIME (RFC 6152), or binary content without BINARYMIME (RFC 3030)"`
	Limits          SendLimits     `yaml:"limits" doc:"what the connector may use"`
	Retry           Retry          `yaml:"retry" doc:"what happens to mail that cannot be delivered at once"`
	Transcript      SendTranscript `yaml:"transcript" doc:"what both sides said"`
}

// Space is an address space.
type Space struct {
	Space string `yaml:"space" required:"true" doc:"\"*\" for all recipients, \"example.com\", or \"*.example.com\" for its sub-domains, and not itself"`
	Cost  int    `yaml:"cost" min:"1" max:"100" doc:"among equally specific spaces the lowest cost wins"`
}

// SmartHost is a configured next hop.
type SmartHost struct {
	Host string `yaml:"host" required:"true" doc:"name or address, with :port unless it is 25"`
	Cost int    `yaml:"cost" min:"1" max:"100" doc:"the lowest cost is tried first; equal costs share the load"`
}

// SendAuth is how we log in at smart hosts.
type SendAuth struct {
	Mechanism    string      `yaml:"mechanism" sendmechanism:"true" type:"none, PLAIN, LOGIN, SCRAM-SHA-256, XOAUTH2, NTLM or GSSAPI" doc:"SASL mechanism"`
	Username     string      `yaml:"username" doc:"our user name: with XOAUTH2 the mailbox, with NTLM DOMAIN\\user, with GSSAPI our principal, such as relay@EXAMPLE.COM"`
	Password     auth.Secret `yaml:"password" doc:"our password; better in password_file or ${VARIABLE}"`
	PasswordFile string      `yaml:"password_file" file:"true" doc:"file that holds the password; it is read at each login"`
	BeforeTLS    bool        `yaml:"before_tls" doc:"logs in without TLS too: the password then crosses the network in clear"`

	Tenant            string      `yaml:"tenant" doc:"with XOAUTH2: the Microsoft Entra tenant, by its id or domain; says token_url"`
	TokenURL          string      `yaml:"token_url" doc:"with XOAUTH2: the token endpoint (OAuth 2.0 client credentials, RFC 6749 section 4.4); https only" default:"Microsoft's, where tenant is given"`
	TokenCAFile       string      `yaml:"token_ca_file" file:"true" doc:"PEM file of the authorities that the token endpoint's certificate may be from instead of the system's"`
	ClientID          string      `yaml:"client_id" doc:"with XOAUTH2: our id at the token endpoint"`
	ClientSecret      auth.Secret `yaml:"client_secret" doc:"our secret there; better in client_secret_file or ${VARIABLE}"`
	ClientSecretFile  string      `yaml:"client_secret_file" file:"true" doc:"file that holds the secret; it is read for each token"`
	ClientCertificate string      `yaml:"client_certificate" doc:"name of the certificate whose key signs for us there, instead of a secret (RFC 7523)"`
	Scopes            []string    `yaml:"scopes" doc:"with XOAUTH2: what the token is to be for, such as https://outlook.office365.com/.default"`

	KeytabFile string `yaml:"keytab_file" file:"true" doc:"with GSSAPI: keytab with the keys of our principal"`
	CacheFile  string `yaml:"ccache_file" file:"true" doc:"with GSSAPI, instead of a keytab: credential cache that something else keeps fresh"`
	KrbFile    string `yaml:"krb5_file" file:"true" doc:"with GSSAPI: the Kerberos configuration" default:"what KRB5_CONFIG names, or /etc/krb5.conf"`
	Service    string `yaml:"service" doc:"with GSSAPI: principal of the smart hosts" default:"smtp/ and the smart host's name"`
}

// SendTLS is how a send connector speaks TLS.
type SendTLS struct {
	Level             string `yaml:"level" enum:"none,opportunistic,encrypt,verify,verify_name,dane,mta_sts" doc:"never; when offered; always; with a certificate from a trusted authority; and with the host's name in it; by TLSA records where the domain has them (RFC 7672), else when offered; by TLSA records, else by the domain's MTA-STS policy (RFC 8461), else when offered"`
	Implicit          bool   `yaml:"implicit" doc:"from the first octet (port 465); for smart hosts"`
	MinVersion        string `yaml:"min_version" enum:"1.0,1.1,1.2,1.3" doc:"oldest TLS version"`
	CAFile            string `yaml:"ca_file" file:"true" doc:"PEM file of the authorities to trust instead of the system's"`
	ClientCertificate string `yaml:"client_certificate" doc:"name of our certificate for hosts that ask for one"`
	Domain            string `yaml:"tls_domain" doc:"name that certificates must be for with verify_name, such as \"smtp.provider.example\", or \"*.provider.example\" for its sub-domains" default:"the host's name"`
}

// SendLimits bound a send connector.
type SendLimits struct {
	Connections               int      `yaml:"connections" min:"1" max:"100000" doc:"connections at once"`
	ConnectionsPerDestination int      `yaml:"connections_per_destination" min:"1" max:"100000" doc:"connections at once to one next hop" default:"40, or connections when that is less"`
	StartPerDestination       int      `yaml:"connections_per_destination_start" min:"1" max:"100000" doc:"how many of these a next hop gets of which nothing is known yet. Each delivery that gets through allows one more" default:"10, or connections_per_destination when that is less"`
	LeastPerDestination       int      `yaml:"connections_per_destination_min" min:"1" max:"100000" doc:"how many are left to a next hop that defers us, does not answer or loses connections: each such attempt halves their number"`
	MessagesPerConnection     int      `yaml:"messages_per_connection" min:"1" max:"1000000" doc:"messages after which a connection is closed"`
	MessagesPerMinute         int      `yaml:"messages_per_minute" min:"0" max:"10000000" doc:"messages a minute of the connector, over all its next hops; 0 is no limit"`
	MessagesPerHour           int      `yaml:"messages_per_hour" min:"0" max:"1000000000" doc:"messages in any hour, of all connectors that log in as the same user; more wait, also over a restart; 0 is no limit"`
	MessagesPerDay            int      `yaml:"messages_per_day" min:"0" max:"1000000000" doc:"messages in any 24 hours, likewise; 0 is no limit"`
	RecipientsPerDay          int      `yaml:"recipients_per_day" min:"0" max:"1000000000" doc:"recipients in any 24 hours, likewise; 0 is no limit"`
	RecipientsPerMessage      int      `yaml:"recipients_per_message" min:"0" max:"100000" doc:"recipients of one transaction; more go in another; 0 is no limit"`
	MessageSize               Size     `yaml:"message_size" doc:"octets of a message; larger ones go to another connector"`
	IdleTimeout               Duration `yaml:"idle_timeout" doc:"how long a connection is kept for the next message"`
}

// Retry says when delivery is tried again.
type Retry struct {
	Schedule []Duration    `yaml:"schedule" doc:"waits between attempts; the last one repeats"`
	Lifetime Duration      `yaml:"lifetime" doc:"how long delivery is tried before the sender gets a report"`
	DelayDSN Duration      `yaml:"delay_dsn" doc:"after how long the sender is told about a delay; 0s is never" default:"4h, or 0s when lifetime is not longer"`
	Domains  []DomainRetry `yaml:"domains" doc:"other values for some recipient domains; with route: mx"`
}

// DNS is how other domains are looked up.
type DNS struct {
	Servers []string `yaml:"servers" doc:"recursive name servers, \"192.0.2.1\" or \"192.0.2.1:53\"" default:"those of /etc/resolv.conf"`
	TrustAD bool     `yaml:"trust_ad" doc:"believes also servers that are not on this machine when they say that an answer is authentic. DANE is as safe as the network on the way to them"`
}

// Queue is where undelivered mail is kept.
type Queue struct {
	Engine         string     `yaml:"engine" enum:"badger" doc:"how it is stored"`
	DiskFreeMin    Size       `yaml:"disk_free_min" doc:"free disk space below which no mail is accepted"`
	KeepAfterRelay Duration   `yaml:"keep_after_relay" doc:"how long messages are kept after they were relayed, so that they can be sent again (waybill queue resend); 0s is not at all"`
	KeepMaxSize    Size       `yaml:"keep_max_size" doc:"disk space for them; the oldest go first, and all of them go before free space gets short"`
	Priorities     Priorities `yaml:"priorities" doc:"what messages get by their priority (RFC 6710); of those that are due for one next hop, high ones go first"`
}

// Tracking is the message-tracking store.
type Tracking struct {
	Engine              string         `yaml:"engine" enum:"badger,off" doc:"how it is stored, or off"`
	Retention           Duration       `yaml:"retention" doc:"how long messages can be found"`
	TranscriptRetention Duration       `yaml:"transcript_retention" doc:"how long the conversations that were kept can be read" default:"7d, or retention when that is less"`
	Kinds               []TrackingKind `yaml:"kinds" doc:"kinds of facts that are kept for less than the others"`
	MaxSize             Size           `yaml:"max_size" doc:"disk space; the oldest goes first. An eighth of it is for conversations"`
	Subject             string         `yaml:"subject" enum:"off,hash,plain" doc:"whether subjects are recorded"`
	Addresses           string         `yaml:"addresses" enum:"plain,hash" doc:"how the tracking store keeps addresses: as they are, or a keyed hash for the local part of each; they are found by the whole address and by domain then"`
	HashKeyFile         string         `yaml:"hash_key_file" file:"true" doc:"keys for hashes of subjects and addresses, one a line, the current one first; the others find what was recorded with them" default:"a key that the relay makes in data_dir"`
}

// TrackingKind says how long some kinds of facts are kept.
type TrackingKind struct {
	Facts     []string `yaml:"facts" required:"true" doc:"names of facts, such as auth_failed; or session or protocol for all facts of that loss class that are about no message. Durable facts, which are a message's history, and conversations cannot be named"`
	Retention Duration `yaml:"retention" required:"true" doc:"how long they are kept"`
}

// HTTP is the HTTP side.
type HTTP struct {
	Listen     string `yaml:"listen" doc:"address and port"`
	TokensFile string `yaml:"tokens_file" file:"true" doc:"who may use the API, with the roles viewer, operator and admin. Without it the API answers on loopback only"`
}

// Log is the protocol log.
type Log struct {
	Level    string   `yaml:"level" enum:"debug,info,warn,error" doc:"what is written. Above info the log is no longer the whole record"`
	Format   string   `yaml:"format" enum:"json,console" doc:"JSON lines, or lines for people"`
	File     string   `yaml:"file" file:"true" doc:"file to write to" default:"standard output"`
	MaxSize  Size     `yaml:"max_size" doc:"size at which the file is rotated; 0B is never"`
	MaxAge   Duration `yaml:"max_age" doc:"age at which the file is rotated; 0s is never"`
	Backups  int      `yaml:"backups" min:"0" max:"100000" doc:"how many rotated files are kept; 0 is all"`
	Keep     Duration `yaml:"keep" doc:"how long rotated files are kept; 0s is for ever"`
	Compress bool     `yaml:"compress" doc:"compresses rotated files with gzip"`
}

// machineName is replaced in tests, which run on any machine.
var machineName = os.Hostname

// maxFile bounds the configuration file.
const maxFile = 4 << 20

// Load reads and checks the file at path, with the files that it names. The
// Config is nil when a problem is more than a warning.
func Load(path string) (*Config, Problems) {
	info, err := os.Stat(path)
	if err == nil && info.Size() > maxFile {
		err = errors.New("the file is too large")
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path) //nolint:gosec // the operator names it
	}
	if err != nil {
		p := Problem{File: path, What: strings.TrimPrefix(plain(err), path+": ")}
		if errors.Is(err, fs.ErrNotExist) {
			p.Hint = "name the configuration with --config; waybill config example prints one to begin with"
		}
		return nil, Problems{p}
	}
	return parse(path, data, true)
}

// Parse reads and checks a configuration without looking at the files that it
// names. The name is for messages, and its directory is what relative file names
// are relative to. The Config is nil when a problem is more than a warning.
func Parse(name string, data []byte) (*Config, Problems) { return parse(name, data, false) }

func parse(name string, data []byte, files bool) (*Config, Problems) {
	c := Default()
	c.name = name
	c.positions = map[string]position{}
	dir := filepath.Dir(name)
	if files {
		if whole, err := filepath.Abs(dir); err == nil { // so that the revision is the same however the file is named
			dir = whole
		}
	}
	d := decoder{dir: dir, problems: collector{file: name, positions: c.positions}}
	d.document(data, c)
	if !d.problems.syntax {
		d.problems.begin()
		c.complete()
		check(c, &d.problems)
		if files {
			checkFiles(c, &d.problems)
		}
	}
	list := d.problems.sorted()
	if list.Errors() {
		return nil, list
	}
	return c, list
}

// Default is the configuration of an empty file: no connectors, and everything
// on loopback.
func Default() *Config {
	return &Config{
		DataDir:      "/var/lib/waybill",
		Users:        defaultUsers(),
		Pickup:       NewPickup(),
		BackPressure: defaultBackPressure(),
		Backoff:      defaultBackoff(),
		Reports:      defaultReports(),
		Queue:        Queue{Engine: "badger", DiskFreeMin: 1 * GiB, KeepMaxSize: 10 * GiB, Priorities: defaultPriorities()},
		Tracking:     Tracking{Engine: "badger", Retention: 30 * Day, MaxSize: 20 * GiB, Subject: "off", Addresses: "plain"},
		HTTP:         HTTP{Listen: "127.0.0.1:8025"},
		Log:          Log{Level: "info", Format: "json", MaxSize: 256 * MiB, Backups: 10, Compress: true},
		Telemetry:    defaultTelemetry(),
		TLSReports:   defaultTLSReports(),
		Blocklists:   defaultBlocklists(),
	}
}

// complete fills in what follows from other keys.
func (c *Config) complete() {
	if c.Hostname == "" {
		if name, err := machineName(); err == nil {
			c.Hostname = name
		}
	}
	if c.Postmaster == "" && len(c.AcceptedDomains) > 0 {
		c.Postmaster = "postmaster@" + c.AcceptedDomains[0].Domain
	}
	c.completeDirectories()
	for i := range c.Receive {
		t := &c.Receive[i].TLS
		if t.Certificate == "" {
			t.Certificate = c.onlyCertificate()
		}
		if t.Mode == "" {
			t.Mode = "off"
			if t.Certificate != "" {
				t.Mode = "starttls"
			}
		}
	}
	if c.Tracking.TranscriptRetention == 0 {
		c.Tracking.TranscriptRetention = min(7*Day, c.Tracking.Retention)
	}
	for i := range c.Send {
		s := &c.Send[i]
		s.Auth.complete()
		if s.Route == "" {
			s.Route = "mx"
			if len(s.SmartHosts) > 0 {
				s.Route = "smart_hosts"
			}
		}
		said := func(key string) bool {
			_, ok := c.positions[fmt.Sprintf("send_connectors[%d].%s", i, key)]
			return ok
		}
		if !said("retry.delay_dsn") && s.Retry.DelayDSN >= s.Retry.Lifetime {
			s.Retry.DelayDSN = 0
		}
		c.completeRetry(i)
		if !said("limits.connections_per_destination") {
			s.Limits.ConnectionsPerDestination = min(s.Limits.ConnectionsPerDestination, max(1, s.Limits.Connections))
		}
		if !said("limits.connections_per_destination_start") {
			s.Limits.StartPerDestination = min(s.Limits.StartPerDestination, max(1, s.Limits.ConnectionsPerDestination))
		}
	}
}

// onlyCertificate is the certificate for connectors that name none.
func (c *Config) onlyCertificate() string {
	if _, ok := c.Certificates["default"]; ok {
		return "default"
	}
	if len(c.Certificates) == 1 {
		for name := range c.Certificates {
			return name
		}
	}
	return ""
}

// Secret is the password for smart hosts: from its file, read now, or from the
// configuration.
func (a SendAuth) Secret() (auth.Secret, error) {
	if a.PasswordFile == "" {
		return a.Password, nil
	}
	return readSecret(a.PasswordFile)
}

// readSecret reads a file with a secret in its first line.
func readSecret(name string) (auth.Secret, error) {
	data, err := os.ReadFile(name) //nolint:gosec // a file that the configuration names
	if err != nil {
		return auth.Secret{}, fmt.Errorf("read secret: %w", err)
	}
	line := firstLine(string(data))
	if line == "" {
		return auth.Secret{}, fmt.Errorf("read secret: %s is empty", name)
	}
	return auth.NewSecret(line), nil
}

// unmarshal reads YAML into nodes.
func unmarshal(data []byte) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	return &doc, nil
}
