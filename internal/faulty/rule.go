package faulty

import (
	"slices"
	"time"
)

// Kind is what befalls a call.
type Kind uint8

// The kinds. "Carried out" means: the server was asked and answered; the caller may be told otherwise.
const (
	// Refused is not sent: the caller gets a refused connection (ECONNREFUSED from a dial).
	Refused Kind = iota + 1
	// Reset is not sent: the caller gets a connection that broke in the middle (ECONNRESET). Of an Answer or a Message of Dialer: it
	// is thrown away, and the connection is of no use any more.
	Reset
	// Reply is not sent: the caller gets the error reply of Rule.Texts. In a pipeline it befalls single commands, the others are sent.
	Reply
	// Timeout is not sent: the caller is held until its context ends, at most MaxHold, or for Rule.Delay whatever its context does, and
	// gets the context's error or a time-out. Of an Answer of Dialer: nothing arrives
	// on this connection any more.
	Timeout
	// AppliedReset is carried out and then ends like Reset: the caller cannot know.
	AppliedReset
	// AppliedTimeout is carried out and then ends like Timeout.
	AppliedTimeout
	// Duplicated is carried out twice. With no Rule.Delay one right after the other, and the caller gets the second answer, as after
	// a repeat by some layer below; with a Delay the caller gets the first, and the second is carried out that much later.
	Duplicated
	// Delayed is carried out after Rule.Delay. If the caller's context ends before, the caller gets its error and the call is carried
	// out all the same.
	Delayed
	// Reordered is carried out when another call to the same server that came later has been answered; at the latest after Rule.Delay, or
	// MaxHold if that is 0. If the caller's context ends before, it is as with Delayed.
	Reordered
	// Dropped is of messages on the bus only: it never arrives.
	Dropped
	// Panic is of Do, Load and LoadMany only: the call panics with ErrInjected.
	Panic
	// Goexit is of Do, Load and LoadMany only: the call ends its goroutine with runtime.Goexit.
	Goexit
)

// MaxHold is how long what nothing else ends is held; chosen: go-redis's default for reads; not tuned.
const MaxHold = 5 * time.Second

var kindNames = map[Kind]string{
	Refused: "refused", Reset: "reset", Reply: "reply", Timeout: "timeout", AppliedReset: "applied, then reset",
	AppliedTimeout: "applied, then timeout", Duplicated: "duplicated", Delayed: "delayed", Reordered: "reordered", Dropped: "dropped",
	Panic: "panic", Goexit: "goexit",
}

// String is the kind in words.
func (k Kind) String() string { return kindNames[k] }

// Error replies as a server gives them, for Rule.Texts.
const (
	ReadOnly  = "READONLY You can't write against a read only replica."
	OOM       = "OOM command not allowed when used memory > 'maxmemory'."
	Loading   = "LOADING Redis is loading the dataset in memory"
	TryAgain  = "TRYAGAIN Multiple keys request during rehashing of slot"
	NoScript  = "NOSCRIPT No matching script. Please use EVAL."
	NoReplica = "NOREPLICAS Not enough good replicas to write."
	Down      = "CLUSTERDOWN The cluster is down"
)

// Names of calls that are no commands.
const (
	Dial    = "dial"    // the making of a connection, in Dialer
	Answer  = "answer"  // what the server answers to what was written on a connection, in Dialer
	Message = "message" // what is published to a subscribed connection, in Dialer
	Loads   = "load"    // Load and LoadMany
)

// Rule says which calls are struck and by what. The first rule that strikes a call has it.
type Rule struct {
	Kind Kind

	// Names are the calls' names: a command in lower case ("get", "evalsha"), the names of this package, what Do was given, or the SHA-1 (in
	// lower-case hex) of a script, which stands for EVALSHA and for EVAL of its text: see Scripts. A pipeline has the names of all
	// its commands. Empty: all but what a client sends by itself to open a connection or to learn a cluster's layout.
	Names []string
	Nodes []string // servers as host:port; empty: all
	// About is contained in an argument of the command: of its key, its channel. Of a load: in the key as fmt.Sprint shows it. Of an
	// Answer: in what was written since the last one. Empty: whatever it is about.
	About string

	P     float64 // the chance of each chosen call, in (0,1]; 0: all of them
	After int     // so many chosen calls are let pass first, of each name
	Limit int     // strikes at most so many times; 0: no limit

	Delay time.Duration // see the kinds
	Texts []string      // of Reply: one of them, by the seed; empty: ReadOnly
}

// chooses reports whether the rule is about c, and under which of its names.
func (r *Rule) chooses(c *call) (name string, ok bool) {
	if !slices.Contains(c.suffers, r.Kind) || len(r.Nodes) > 0 && !slices.Contains(r.Nodes, c.node) || r.About != "" && !c.isAbout(r.About) {
		return "", false
	}
	if len(r.Names) == 0 {
		return c.names[0], !c.setUp
	}
	for _, name := range c.names {
		if slices.Contains(r.Names, name) {
			return name, true
		}
	}
	return "", false
}
