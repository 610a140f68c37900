package rebuild

import (
	"context"
	"time"
)

// LockClaim is one caller's claim to one name. Limit and Ordered are properties of the name: whoever calls for it gives the same.
type LockClaim struct {
	// Name is any string, at most 8 KiB.
	Name string
	// Owner names the call that wants a grant. It is new for every call and the same for all of its repeats, polls and renewals: its
	// kind ("x" exclusive, "s" shared), its process and 16 hexadecimal digits, with dots between. The process is one to 64
	// letters, digits, hyphens and underscores.
	Owner string
	// Limit is how many shared holders there may be at once; 0: any number. Exclusive holders have nobody beside them in any case.
	Limit int
	// Lease is how long the grant stands if it is not renewed; at least a millisecond, of which backends use whole ones.
	Lease time.Duration
	// Entry is how long a place in the queue is kept if it is not asked for again; 0: none is taken.
	Entry time.Duration
	// Ordered says that nobody is passed who waits ahead and is alive.
	Ordered bool
	// Floor is the newest token or server microsecond that the asker has seen in any answer (LockGrant.Floor); 0: none.
	Floor uint64
	// Also are other owners of the same process on the same name whose places in the queue are kept alive by this call. Only where
	// the claim itself is put into the queue.
	Also []string
}

// LockGrant is what a Backend says.
type LockGrant struct {
	// Token fences: a grant of the name has a higher one than every grant before it. 0 with an error.
	Token uint64
	// Left is for how long, counted from the answer and by the backend's own clock, nobody else is granted the name. Whoever counts it
	// from before the request was sent is on the safe side. 0 with a nil error: until a ping fails.
	Left time.Duration
	// Retry comes with ErrLocked: the rest of the lease, or of the place in the queue, in the way; 0: unknown.
	Retry time.Duration
	// Floor is the newest token or server microsecond of this answer, also with ErrLocked and ErrLeaseLost; 0: none.
	Floor uint64
	// Gone are those of LockClaim.Also that have no place any more and must ask for themselves.
	Gone []string
	// Processes is how many processes have asked for the name in the last seconds; 0: unknown. Only for shared claims with a Limit.
	Processes int
}

// Backend is what a family of locks stands on: Redis here, others elsewhere. Everything above it, watchdogs, waiting, nesting, is the
// same for all.
//
// A Backend MUST be safe for concurrent use, MUST return when ctx ends, and MUST NOT wait for a lock. It MUST take each call a second
// time as if it were the first: callers repeat what they had no answer to. A copy of Acquire that arrives late, after the owner was
// released, may grant once more (a lease that nobody holds, until it ends), but never if the owner was released with burn. Package
// backendtest has the tests.
//
// Callers MUST tolerate every error as "unknown": the call may have been carried out, or may be later. Errors that pass by themselves
// (network, a failover under way, a server that loads) match ErrUnavailable; if ctx ended, the error matches ctx.Err(). All others mean
// that asking again is of no use.
type Backend interface {
	// Acquire grants the name, or returns ErrLocked: somebody has it, or (Ordered) waits ahead; with Entry the owner then has a place in
	// the queue. An owner that has the name already gets its grant again, with the same token. An owner that was released with burn is
	// never granted anything: ErrLeaseLost.
	Acquire(ctx context.Context, c LockClaim) (LockGrant, error)

	// Renew lets the grant with this token stand for another c.Lease, at least. A grant that is over, or was another one:
	// ErrLeaseLost. It never revives.
	Renew(ctx context.Context, c LockClaim, token uint64) (LockGrant, error)

	// Release ends whatever the owner has: its grant, its place in the queue. Token 0 stands for any; where the grant has another
	// token it is ended all the same. With burn the owner is granted nothing for so long, however late a copy of Acquire arrives.
	// ErrLeaseLost says that it held nothing any more (who only waited gets it too).
	Release(ctx context.Context, c LockClaim, token uint64, burn time.Duration) error

	// Watch calls wake for each owner of process that had better ask now, until it may have missed one or ctx ends; then it returns.
	// ready is called once, before the first wake, when everything that happens from then on is heard. Neither may block. A wake-up
	// grants nothing, may come for nothing, more than once, or for an owner that has left.
	Watch(ctx context.Context, process string, ready func(), wake func(name, owner string)) error
}

// Resizer is a Backend that can change how many shared holders a name has at once.
type Resizer interface {
	// Resize puts limit in the place of every LockClaim.Limit of this name, until the name was not used for a day; 0 ends that. Nobody who
	// holds is revoked: a smaller limit holds as soon as enough have left.
	Resize(ctx context.Context, name string, limit int) error
}

// Downgrader is a Backend that can turn an exclusive grant into a shared one without a moment in between.
type Downgrader interface {
	// Downgrade ends the exclusive grant of c.Owner with this token and gives owner, which is of the shared kind, a shared one with a new
	// token, past all who wait. Other shared claims that waited for it are woken. ErrLeaseLost: there was no such grant any more.
	Downgrade(ctx context.Context, c LockClaim, token uint64, owner string) (LockGrant, error)
}

// BatchRenewer is a Backend that renews many grants in fewer round trips.
type BatchRenewer interface {
	// RenewAll is Renew for each claim with the token of the same index; results and errors have the same index too.
	RenewAll(ctx context.Context, claims []LockClaim, tokens []uint64) ([]LockGrant, []error)
}
