package bloom

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// MaxLag is how old a guard's knowledge of the fleet's announcements may be: with nothing read from the store for longer, nothing is
// absent. It is half the life of the marker that an announcement leaves in Redis (10 s), so whoever reads Redis before the filter
// meets either the marker or a filter that has the row. It is measured on the monotonic clock: a machine that was suspended as a whole
// does not notice, and may be behind until the next CatchUp.
const MaxLag = 5 * time.Second

var (
	// ErrBuilding is what Build fails with while another Build of the same guard runs.
	ErrBuilding = errors.New("bloom: a build is under way in this process")
	// ErrNoSnapshot is what Adopt fails with where no filter was built yet, or its snapshot is gone.
	ErrNoSnapshot = errors.New("bloom: no snapshot is stored")
	// ErrBehind is what Adopt, CatchUp and Build fail with when announcements are lost which the filter would need: the filter
	// cannot be believed, and a new build is due.
	ErrBehind = errors.New("bloom: announcements that the filter needs are lost")
	// ErrDoubted is what Adopt, and the end of a Build, fail with for a filter that Doubt was called of, here or in another process: only a
	// filter whose build began later is believed again.
	ErrDoubted = errors.New("bloom: the filter called a row absent that exists")
	// ErrSuperseded is what Build fails with when a filter stands whose build began later: nothing has changed, and Adopt fetches that one.
	ErrSuperseded = errors.New("bloom: a newer filter stands")
	// ErrImplausible is what Build fails with when what was built cannot be right: see BuildOptions.Expected, and scan.plausible for the keys
	// that are tried. What was believed before stays.
	ErrImplausible = errors.New("bloom: what was built is not plausible")
	// ErrTooLarge is what Adopt fails with for a filter that was built for more keys, or a lower rate, than this guard's Options: it takes
	// no more memory than they ask for.
	ErrTooLarge = errors.New("bloom: the stored filter is larger than the Options here ask for")
)

// Store keeps what a fleet shares of its filter: the snapshot, and the announcements of new rows in the order in which they came.
// A cursor names an announcement; it is opaque here. A generation names a filter: of two, the one whose build began later has the greater; it
// is the store's time in milliseconds since 1970, times 4096, plus less than that. Implementations MUST be safe for concurrent calls.
type Store interface {
	// BeginFilter makes the store keep announcements from now on, if it does not yet, and returns the cursor of the first one
	// within reach before now, and the generation of a filter whose scan begins now. whole is false if announcements within reach are
	// known to be lost.
	BeginFilter(ctx context.Context, reach time.Duration) (cursor string, generation uint64, whole bool, err error)
	// SaveFilter stores the snapshot of that generation, which holds all announcements up to cursor, and tells the fleet. A nil snapshot
	// says instead that the filters up to that generation are doubted: what stands is taken away. In one step with looking: it MUST
	// return false and do nothing where a newer one stands, or a snapshot is to take the place of the word that it is doubted.
	SaveFilter(ctx context.Context, generation uint64, cursor string, snapshot []byte) (stored bool, err error)
	// StandingFilter returns the generation of what was stored last, and whether that is the word that it is doubted; 0 for nothing.
	StandingFilter(ctx context.Context) (generation uint64, doubted bool, err error)
	// LoadFilter returns the snapshot stored last, with its generation and cursor; a nil snapshot if there is none or it is doubted.
	LoadFilter(ctx context.Context) (snapshot []byte, generation uint64, cursor string, err error)
	// Announced returns the keys announced from cursor on, some at a time, and the cursor to go on with; the same cursor means that
	// there was nothing more when the call began. The announcement at cursor itself may be among them. whole MUST be false if any
	// announcement after cursor may be lost: keys and next then mean nothing.
	//
	// lags are what was told of change feeds after cursor, not at it: each that all rows committed longer ago than that were announced before.
	Announced(ctx context.Context, cursor string) (keys []string, lags []time.Duration, next string, whole bool, err error)
}

// EndStore is a Store that also tells when the announcements were read to their end. Of any other a guard learns that only by a question that finds
// nothing new, for which it waits as long as rows are announced faster than it can ask. Implementations MUST be safe for concurrent calls.
type EndStore interface {
	Store
	// AnnouncedUntil is Announced; end says that there was nothing more, behind what it returns, when the call began.
	AnnouncedUntil(ctx context.Context, cursor string) (keys []string, lags []time.Duration, next string, end, whole bool, err error)
}

// State is what a guard's filter is worth.
type State uint8

// The states, in the order in which a guard usually meets them.
const (
	Unbuilt  State = iota // there never was a filter here: everything passes
	Believed              // what the filter says is absent is absent
	Lagging               // the announcements were not read for MaxLag: everything passes until CatchUp succeeds
	Doubted               // announcements are lost, or Doubt was called: everything passes until another filter is built
)

func (s State) String() string {
	switch s {
	case Unbuilt:
		return "unbuilt"
	case Believed:
		return "believed"
	case Lagging:
		return "lagging"
	case Doubted:
		return "doubted"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Guard says which keys are certainly absent from a source, and never says it in doubt. All methods may be called concurrently;
// Absent takes no lock.
//
// What makes "absent" certain: every row was in the scan, or was announced no longer than Reach before the scan began, or later.
// So all writers of new rows must announce them, first, to all processes; rows that come in unannounced are called absent until
// the next build.
//
// Lock order: turn, mu, a filter's own lock.
type Guard struct {
	options Options
	started time.Time // moments count from here, on the monotonic clock: from before the guard was made, so that 0 is none of them

	feed time.Duration // 0: all writers announce their rows; else no more than this may have passed since fed
	fed  atomic.Int64  // up to when change feeds have told of all commits, since started; 0: not known yet

	belief   atomic.Pointer[belief] // nil: everything passes
	doubted  atomic.Bool            // says only why there is no belief
	building atomic.Bool

	// turn is held by who changes which filter is believed, while it reads the store: one at a time, so that an older snapshot
	// never replaces a newer filter. It is a channel because waiting for it ends with a context.
	turn chan struct{}

	mu       sync.Mutex // guards what follows, and is held to move belief
	log      announcedLog
	incoming map[adder]struct{} // filters that will be believed later: additions go to them as well
	refused  uint64             // no filter of this generation or an older one is believed: Doubt was called of it
	untold   uint64             // of refused: what the store was not told yet; 0: it knows
	older    bool               // the store came back with older data: what it has is to be doubted
	unusable unusable           // what was found in the store last and is not fetched again
}

// adder is a filter, or what becomes one.
type adder interface{ Add(key string) }

// belief is a filter that is believed, and why.
type belief struct {
	filter     *Filter
	generation uint64       // the store's; 0 for a filter whose announcements do not come through a store
	confirmed  atomic.Int64 // when the store was last asked and had nothing more, since Guard.started
	cursor     string       // up to which announcements are in filter; changed only by who holds the turn
	old        time.Time    // when another should be built; by the wall clock, which decides nothing else

	before atomic.Pointer[predecessor] // nil: there was none, or its time is over
}

// predecessor is the filter that was believed before. For swapGrace a key passes if either filter lets it: a fault of the new one's scan is
// noticed by rows that are loaded before it hides them.
type predecessor struct {
	filter *Filter
	until  time.Duration // since Guard.started
}

// swapGrace is how long a filter's predecessor is still asked; then its memory is given back. Chosen; not tuned.
const swapGrace = time.Minute

// dayBefore is how far a guard's moments reach back before it was made: a change feed may tell of what was before. Chosen; not tuned.
const dayBefore = 24 * time.Hour

// NewGuard returns a guard without a filter: everything passes. The error names all mistakes in o.
func NewGuard(o Options) (*Guard, error) {
	o, err := o.check()
	if err != nil {
		return nil, err
	}
	return &Guard{options: o, started: time.Now().Add(-dayBefore), turn: make(chan struct{}, 1), incoming: map[adder]struct{}{}}, nil
}

// Absent reports whether the source certainly has no row of this key: only a believed filter says so. It takes no lock and
// allocates nothing.
//
// The race: 1. The guard lags. 2. The filter does not have the key yet. 3. CatchUp adds it, and the guard lags no more. 4. Is it current? Closed
// because what is known of the announcements is read before the filter, and the clock after it.
func (g *Guard) Absent(key string) bool {
	b := g.belief.Load()
	if b == nil {
		return false
	}
	k := g.knownOf(b)
	return !b.filter.MayContain(key) && !g.passedBefore(b, key) && g.young(k)
}

// passedBefore reports whether b's predecessor, if it is still asked, lets key pass.
func (g *Guard) passedBefore(b *belief, key string) bool {
	p := g.predecessor(b)
	return p != nil && p.filter.MayContain(key)
}

// predecessor is b's, nil once its time is over.
func (g *Guard) predecessor(b *belief) *predecessor {
	p := b.before.Load()
	if p != nil && time.Since(g.started) > p.until {
		b.before.CompareAndSwap(p, nil)
		return nil
	}
	return p
}

// Lacks reports whether the believed filter itself, without its predecessor's word, calls key absent: for whoever knows that the source has its
// row. See Refute.
func (g *Guard) Lacks(key string) bool {
	b := g.belief.Load()
	if b == nil {
		return false
	}
	k := g.knownOf(b)
	return !b.filter.MayContain(key) && g.young(k)
}

// knowledge is up to when a guard has heard of new rows, since Guard.started.
type knowledge struct {
	fed       time.Duration // by change feeds; 0: not known yet
	confirmed time.Duration // by announcements
	local     bool          // they do not come through a store
}

func (g *Guard) knownOf(b *belief) knowledge {
	return knowledge{time.Duration(g.fed.Load()), time.Duration(b.confirmed.Load()), b.generation == 0}
}

// young reports whether k is young enough now. Asked after the filter, because only an absent key needs the clock.
func (g *Guard) young(k knowledge) bool {
	now := time.Since(g.started)
	if g.feed > 0 && (k.fed == 0 || now-k.fed > g.feed) {
		return false
	}
	return k.local || now-k.confirmed <= MaxLag
}

// Add makes keys no longer absent, from when it returns: in the filter, in one that is being built or fetched, and in one whose
// building begins within Reach. It is called for what this process announces and for what it hears of the others'. Now and then
// it takes as long as copying the filter (see [Filter.Add]).
func (g *Guard) Add(keys ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.log.add(time.Now(), keys...)
	if b := g.belief.Load(); b != nil {
		addAll(b.filter, keys)
	}
	for a := range g.incoming {
		addAll(a, keys)
	}
}

func addAll(a adder, keys []string) {
	for _, key := range keys {
		a.Add(key)
	}
}

// Doubt lets everything pass until a filter is believed whose build began after that of the one believed now: for whoever saw the filter
// call a row absent that exists. The next CatchUp tells the fleet.
func (g *Guard) Doubt() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := g.belief.Load(); b != nil {
		g.refuseLocked(b)
	}
}

// Refute says that the source has a row of this key, whose announcement, if there was one, has been read by now. It doubts the filter, and returns
// true, if that calls the row absent.
func (g *Guard) Refute(key string) (doubted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.belief.Load()
	if b == nil || b.filter.MayContain(key) {
		return false
	}
	g.refuseLocked(b)
	return true
}

// refuseLocked doubts b for good.
func (g *Guard) refuseLocked(b *belief) {
	g.doubtLocked(b)
	g.refused = max(g.refused, b.generation)
	g.untold = g.refused
}

// doubtLocked ends the belief b, unless another has taken its place.
func (g *Guard) doubtLocked(b *belief) {
	if g.belief.CompareAndSwap(b, nil) {
		g.doubted.Store(true)
	}
}

// Believed reports whether Absent says anything now.
func (g *Guard) Believed() bool { return g.State() == Believed }

// State returns what the guard's filter is worth now.
func (g *Guard) State() State {
	b := g.belief.Load()
	switch {
	case b != nil && g.young(g.knownOf(b)):
		return Believed
	case b != nil:
		return Lagging
	case g.doubted.Load():
		return Doubted
	}
	return Unbuilt
}

// Stats returns the believed filter's size and fill, its Bytes with those of the one before it while that is still asked; only the capacity
// asked for if there is none.
func (g *Guard) Stats() Stats {
	b := g.belief.Load()
	if b == nil {
		return Stats{Capacity: g.options.Capacity}
	}
	s := b.filter.Stats()
	if p := g.predecessor(b); p != nil {
		s.Bytes += p.filter.Stats().Bytes
	}
	return s
}

// receive gives a the announcements of the last Reach, and all that follow. whole is false if some of the last Reach are not
// known here any more.
func (g *Guard) receive(a adder) (whole bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.incoming[a] = struct{}{}
	return g.log.recall(time.Now(), a.Add)
}

// dismiss ends what receive began.
func (g *Guard) dismiss(a adder) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.incoming, a)
}

// believe makes next the guard's belief and takes its filter off the incoming ones, at one moment: each Add is either before it and reached
// the filter there, or after it and reaches the believed one. It refuses a filter that is doubted, and one that is older than the believed.
func (g *Guard) believe(next *belief) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.incoming, next.filter)
	if next.generation != 0 && (g.older || next.generation <= g.refused) {
		return ErrDoubted
	}
	if b := g.belief.Load(); b != nil && b.generation > next.generation && next.generation != 0 {
		return ErrSuperseded
	}
	next.old = oldAt(next.generation)
	if b := g.belief.Load(); b != nil {
		next.before.Store(&predecessor{b.filter, time.Since(g.started) + swapGrace})
	}
	g.belief.Store(next)
	g.doubted.Store(false)
	return nil
}

func (g *Guard) take(ctx context.Context) error {
	select {
	case g.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *Guard) give() { <-g.turn }
