package config

// ReceivePriority says how urgent the messages of a receive connector are.
type ReceivePriority struct {
	Default string `yaml:"default" enum:"low,normal,high" doc:"priority of messages that do not say one"`
	Headers bool   `yaml:"headers" doc:"the header fields Importance, Priority and X-Priority count too, in this order. Only clients that logged in, or may relay, can raise the priority by them"`
}
