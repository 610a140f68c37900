package tiercache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"time"

	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

// Options say what a cache caches and how. Name and Load (or LoadMany) are required; everything else has a default, named behind the
// field, that zero stands for. Negative means "off" only where the comment says so; else it is an error of New.
type Options[K comparable, V any] struct {
	// Name is the cache's namespace in Redis and its label in metrics: two caches of one name share their entries there, so they must
	// hold the same thing. In one process it may be open once on a layers.Redis and once on a layers.Memory.
	Name string

	// Load returns the row of key from the source, ErrNotFound (or an error that wraps it) where there is none. It is called with a
	// context that has the values of the first caller's context and ends after LoadTimeout or at Close, not with that caller. It may
	// run concurrently for different keys, must not call this cache for the same key, and its value is shared by all callers.
	Load func(ctx context.Context, key K) (V, error)

	// LoadMany returns the rows of many keys, at most 1,000 a call; keys that do not exist are left out of the map. With an error the
	// map is not used: ErrNotFound is the answer where one key was asked for, and an error like any other for several. With both given, Get
	// calls Load and GetMany calls LoadMany; each stands in for the other where it is missing.
	LoadMany func(ctx context.Context, keys []K) (map[K]V, error)

	Shared      *layers.Redis            // the shared tier; nil: this process only
	Memory      *layers.Memory           // the local tier, of one or many caches; nil: a private one of MemoryBytes
	MemoryBytes int64                    // 64 MiB; bound of the private memory; unused where Memory is given
	SizeOf      func(key K, value V) int // bytes of an entry in memory; nil: its encoded size, or an estimate of it
	Filter      bloom.Options            // zero: no filter. The cache owns it; BuildFilter builds it
	FilterAudit float64                  // 0.001; the fraction of what the filter calls absent that is loaded all the same, (0,1]; 1: shadow mode, it blocks nothing; negative: none. See docs/filters.md
	FilterFeed  time.Duration            // 0: all writers announce; else the filter is believed only while Feed has told of all commits until so long ago; at least 2 s
	FilterFirst bool                     // ask the filter before Redis: saves a GET for absent keys, finds new rows only once announced here

	TTL          time.Duration            // 10 min; fresh for, at most
	TTLFor       func(K, V) time.Duration // life by value; 0: TTL; never longer than TTL; negative: answer it, do not store it
	MemoryTTL    time.Duration            // 1 min with Shared, TTL without; negative: nothing is kept in memory (an error without Shared)
	AbsentTTL    time.Duration            // 1 min; "not found" is kept for; negative: never
	AbsentMisses int                      // 2: Redis is told "not found" when this process finds a key absent a second time, or if another waits; until then memory keeps it. 1: at once. See docs/adr/0018
	MaxStale     time.Duration            // 10 min, at most the entry's own TTL; answered so long beyond TTL while it is rebuilt or the source fails; negative: never. Not for absent entries
	StaleWait    time.Duration            // 0: answer stale at once; > 0: wait so long for the rebuild first
	Jitter       float64                  // the fraction of each life taken off at random, [0,1); 0: 0.10, of lives below 2 min 0.20; negative: none, and no cold spread (see the package comment)
	RefreshAhead float64                  // 0.8; the fraction of a value's life after which a hot key is rebuilt ahead, [0,1); negative: never. It needs memory: see HotKeys
	DeleteWindow time.Duration            // 1 s; the delay of the delayed double delete: longer than the database's replica lag
	LoadTimeout  time.Duration            // 3 s; one load, whoever waits
	LeaseTime    time.Duration            // 3 s; how long a dead process can hold a rebuild; renewed while it lives; at least 100 ms

	HotCopies int // 0: none; so many copies of each hot key's value stand in other slots of a Redis Cluster, at most 16, and its reads are spread over them; see HotKeys
	WarmList  int // of all processes, the keys read most that Redis remembers for WarmFromList; 0: none; at most 10,000; it needs Shared

	Gate      rebuild.GateOptions     // loads at once in this process: 64, 256 waiting, for 100 ms
	FleetGate *rebuild.Semaphore      // loads at once in all processes: each holds a permit of Name, for which it waits half of LoadTimeout, else ErrOverloaded; nil: no such bound
	Breaker   rebuild.BreakerOptions  // when half of at least 20 loads within 10 s failed, none for 1 s to 5 s; negative FailureRate: never
	Codec     layers.Codec            // layers.Raw for string and []byte values, else layers.JSON
	Schema    uint16                  // number of V's shape: an entry of another number in Redis is a miss
	KeyString func(K) string          // the string form of a key, its identity in every tier; see the package comment
	ParseKey  func(string) (K, error) // the way back from a key's string form, for WarmList: needed with KeyString, and by types that do not unmarshal their text
	ValidKey  func(K) bool            // whether a key can exist at all; see the package comment; nil: every key can
	Clone     func(V) V               // copies a value on its way into memory and out to each caller; a panic is a *PanicError for that caller; nil: values are shared
	Hooks     *Hooks                  // told what happens; nil: nobody is
	Logger    *slog.Logger            // slog.Default()
}

// Defaults of Options. Each is chosen, not tuned, where no source is named.
const (
	defaultTTL          = 10 * time.Minute
	defaultMemoryTTL    = time.Minute
	defaultAbsentTTL    = time.Minute
	defaultAbsentMisses = 2 // keys that are made up are not asked for twice
	defaultMaxStale     = 10 * time.Minute
	defaultRefreshAhead = 0.8
	defaultFilterAudit  = 0.001 // a row that the filter lacks is found, on average, at the thousandth request for it
	defaultDeleteWindow = time.Second
	defaultLoadTimeout  = 3 * time.Second
	defaultLeaseTime    = 3 * time.Second

	minLeaseTime = 100 * time.Millisecond
	pendTime     = 30 * time.Second // how long a write may take to commit after the last renewal; chosen; not tuned
	maxNameBytes = 200              // a name stands in every key and channel; chosen; not tuned

	backOffBase = 100 * time.Millisecond // after the second failed load of a key in a row; doubled by each further one
	backOffMax  = time.Second

	maxLife         = 30 * 365 * 24 * time.Hour // longer durations are cut to it: nothing is added to them that could overflow
	maxScriptKeys   = 1000                      // keys of one call of Redis that runs a script for each: they fit well into its budget
	maxLoadManyKeys = 1000                      // keys of one LoadMany call
	maxParallelGets = 16                        // loads at once of one GetMany where there is only Load
	maxPending      = 10_000
	maxWindows      = 10_000
)

// withDefaults returns o with every zero replaced by its default, and all of its mistakes in one error.
func (o Options[K, V]) withDefaults() (Options[K, V], error) {
	var bad []error
	wrong := func(format string, args ...any) { bad = append(bad, fmt.Errorf(format, args...)) }

	switch {
	case strings.TrimSpace(o.Name) == "":
		wrong("Name is required")
	case len(o.Name) > maxNameBytes:
		wrong("Name has %d bytes, at most %d are allowed", len(o.Name), maxNameBytes)
	}
	if o.Load == nil && o.LoadMany == nil {
		wrong("Load or LoadMany is required")
	}
	if o.MemoryBytes < 0 {
		wrong("MemoryBytes is negative: %d", o.MemoryBytes)
	}
	if o.MemoryTTL < 0 && o.Shared == nil {
		wrong("MemoryTTL is negative, but without Shared memory is all there is")
	}
	for _, d := range []struct {
		name     string
		value    *time.Duration
		zero     time.Duration
		negative bool // means off
	}{
		{"TTL", &o.TTL, defaultTTL, false},
		{"AbsentTTL", &o.AbsentTTL, defaultAbsentTTL, true},
		{"MaxStale", &o.MaxStale, defaultMaxStale, true},
		{"StaleWait", &o.StaleWait, 0, false},
		{"DeleteWindow", &o.DeleteWindow, defaultDeleteWindow, false},
		{"LoadTimeout", &o.LoadTimeout, defaultLoadTimeout, false},
		{"LeaseTime", &o.LeaseTime, defaultLeaseTime, false},
	} {
		if *d.value < 0 && !d.negative {
			wrong("%s is negative: %v", d.name, *d.value)
		}
		*d.value = min(*d.value, maxLife)
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	switch {
	case o.AbsentMisses < 0 || o.AbsentMisses > defaultAbsentMisses:
		wrong("AbsentMisses is %d, it must be 1 or 2", o.AbsentMisses)
	case o.AbsentMisses == 0:
		o.AbsentMisses = defaultAbsentMisses
	}
	if o.LeaseTime >= 0 && o.LeaseTime < minLeaseTime {
		wrong("LeaseTime is %v, at least %v is needed: it is renewed three times in its length", o.LeaseTime, minLeaseTime)
	}
	for _, f := range []struct {
		name  string
		value *float64
		zero  float64
	}{{"Jitter", &o.Jitter, 0}, {"RefreshAhead", &o.RefreshAhead, defaultRefreshAhead}} {
		if math.IsNaN(*f.value) || *f.value >= 1 {
			wrong("%s is %v, it must be below 1", f.name, *f.value)
		}
		if *f.value == 0 {
			*f.value = f.zero
		}
	}
	if o.MemoryTTL == 0 {
		o.MemoryTTL = o.TTL
		if o.Shared != nil {
			o.MemoryTTL = defaultMemoryTTL
		}
	}
	if !o.Filter.Enabled() && (o.FilterFirst || o.FilterAudit != 0 || o.FilterFeed != 0) {
		wrong("FilterFirst, FilterAudit or FilterFeed is set, but there is no Filter")
	}
	if o.FilterFeed < 0 || o.FilterFeed > 0 && o.FilterFeed < minFilterFeed {
		wrong("FilterFeed is %v, at least %v is needed: announcements are read each second", o.FilterFeed, minFilterFeed)
	}
	if math.IsNaN(o.FilterAudit) || o.FilterAudit > 1 {
		wrong("FilterAudit is %v, it must be at most 1", o.FilterAudit)
	}
	if o.FilterAudit == 0 {
		o.FilterAudit = defaultFilterAudit
	}
	if o.Filter.Form == bloom.InRedis && o.Shared == nil {
		wrong("Filter.Form is InRedis, but there is no Shared")
	}
	switch {
	case o.HotCopies < 0 || o.HotCopies > layers.MaxCopies:
		wrong("HotCopies is %d, it must be 0 to %d", o.HotCopies, layers.MaxCopies)
	case o.HotCopies > 0 && o.Shared == nil:
		wrong("HotCopies is set, but there is no Shared to keep them")
	}
	switch {
	case o.WarmList < 0:
		wrong("WarmList is negative: %d", o.WarmList)
	case o.WarmList > warmListMost:
		wrong("WarmList is %d, at most %d keys are kept", o.WarmList, warmListMost)
	case o.WarmList > 0 && o.Shared == nil:
		wrong("WarmList is set, but there is no Shared to keep it")
	}
	o.MemoryTTL, o.AbsentTTL = min(o.MemoryTTL, o.TTL), min(o.AbsentTTL, o.TTL)
	if o.Codec == nil {
		o.Codec = defaultCodec[V]()
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.Hooks = o.Hooks.guarded(o.Logger, o.Name)
	o.ValidKey = guardedValidKey(o.ValidKey, o.Logger, o.Name)
	return o, errors.Join(bad...)
}

// defaultCodec is layers.Raw for strings and bytes, whose encoding is themselves, and layers.JSON for all else.
func defaultCodec[V any]() layers.Codec {
	var v V
	switch any(v).(type) {
	case string, []byte:
		return layers.Raw
	default:
		return layers.JSON
	}
}

// New returns a cache, open until Close. All mistakes of o come in one error. It does not wait for Redis: a cache opened while Redis is
// away serves from memory and the source until it is there.
func New[K comparable, V any](o Options[K, V]) (*Cache[K, V], error) {
	keys, keyErr := newKeyer[K](o.KeyString)
	keyErr = errors.Join(keyErr, keys.backBy(o.ParseKey, o.WarmList > 0))
	o, err := o.withDefaults()
	gate, gateErr := rebuild.NewGate(o.Gate)
	breaker, breakerErr := rebuild.NewBreaker(o.Breaker, countsAsFailure, o.Hooks.sourceBreaker())
	absence, absenceErr := o.absence()
	c := &Cache[K, V]{o: o, keys: keys, gate: gate, breaker: breaker, absence: absence}
	var filterErr error
	if o.Filter.Form == bloom.InRedis {
		_, filterErr = bloom.NewSegmented(o.Filter)
	} else if o.Filter.Enabled() {
		if c.filter, filterErr = bloom.NewGuard(o.Filter); filterErr == nil {
			c.filter.RelyOnFeed(o.FilterFeed)
		}
	}
	if err := errors.Join(err, keyErr, gateErr, breakerErr, absenceErr, filterErr); err != nil {
		return nil, fmt.Errorf("tiercache: options: %w", err)
	}
	if err := c.open(); err != nil {
		return nil, fmt.Errorf("tiercache: open %q: %w", o.Name, err)
	}
	return c, nil
}
