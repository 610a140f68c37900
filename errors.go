package tiercache

import (
	"errors"
	"fmt"

	"github.com/tiercache/tiercache/rebuild"
)

var (
	// ErrNotFound says that the source has no row of this key. Loaders return it (or an error that wraps it, as one that maps
	// sql.ErrNoRows to it does); Get returns it, from any tier, without a *LoadError around it.
	ErrNotFound = errors.New("tiercache: not found")

	// ErrClosed is returned by every call that begins after Close, and by calls that Close cut short.
	ErrClosed = rebuild.ErrClosed

	// ErrOverloaded says that the gate was full and nothing stale was at hand: the source was not asked. Shed the request or try
	// again later; asking again at once makes it worse. Get returns it inside a *LoadError.
	ErrOverloaded = rebuild.ErrOverloaded

	// ErrBreakerOpen says that most of the last loads failed, of whatever key, and nothing stale was at hand: the source is left alone for
	// a while (Options.Breaker) and was not asked. Answer with less, or try again later. It comes inside a *LoadError, together with the
	// error of the last load that failed, which may be of another key.
	ErrBreakerOpen = rebuild.ErrBreakerOpen

	// ErrPending is returned by writes that were done in this process and are queued for Redis, which could not be reached: other
	// processes may answer older values for at most MemoryTTL, and from Redis until the queue was replayed. There is nothing to
	// repeat, except after Announce: do not insert before it returned nil.
	ErrPending = errors.New("tiercache: done here, queued for Redis")

	// ErrGoexit says that the loader ended its goroutine by runtime.Goexit (as testing.T.FailNow does). It comes inside a *LoadError.
	ErrGoexit = rebuild.ErrGoexit

	// ErrBackingOff says that the last loads of this key failed and that the pause after them is not over: the source was not asked.
	// It comes inside a *LoadError; the pause is a second at most.
	ErrBackingOff = errors.New("tiercache: backing off after failed loads")

	// ErrInvalidKey says that Options.ValidKey refused the key: nothing was looked up or written. Reads return it together with
	// ErrNotFound: errors.Is finds both. GetMany leaves such keys out as it does rows that do not exist.
	ErrInvalidKey = errors.New("tiercache: invalid key")

	// ErrNilContext is returned by calls that were given a nil context.
	ErrNilContext = errors.New("tiercache: nil context")
)

// PanicError is what callers get when a loader, or Options.Clone, panicked: the value it panicked with and its stack. It comes inside a *LoadError.
type PanicError = rebuild.PanicError

// LoadError says that one key could not be had from the source: the loader failed, timed out or panicked, or could not be called
// (ErrOverloaded, ErrBackingOff, ErrBreakerOpen). Get and Refresh return it as *LoadError, GetMany one for each failed key, joined.
type LoadError struct {
	Key string // the key's string form; not part of the text, which may end up in logs
	Err error
}

// Error returns the text of the cause. It does not hold the key.
func (e *LoadError) Error() string { return fmt.Sprintf("tiercache: load: %v", e.Err) }

// Unwrap returns the loader's error, or what kept it from being called.
func (e *LoadError) Unwrap() error { return e.Err }
