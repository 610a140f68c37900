package fleet

import (
	"context"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/tiercache/tiercache"
)

// do plays one operation. One whose process has died meanwhile leaves no answer.
func (r *run) do(o Op) {
	p := r.in(o.Slot)
	if p == nil || !p.alive() {
		return
	}
	switch o.Kind {
	case OpGet:
		r.get(p, o)
	case OpGetMany:
		r.getMany(p, o.Keys)
	case OpRefresh:
		r.refresh(p, o.Keys[0])
	case OpInvalidate:
		r.invalidate(p, o)
	case OpUpdate:
		r.update(p, o)
	case OpSet:
		r.set(p, o)
	case OpInsert:
		r.insert(p, o.Keys[0])
	case OpClear:
		w := r.h.write(Cleared, p.number, "")
		r.ended(p, p.cache.Clear(p.ctx), w)
	case OpLook:
		r.look(false)
	}
}

func (r *run) get(p *process, o Op) {
	ctx := p.ctx
	if o.Leaves > 0 {
		short, cancel := context.WithTimeout(ctx, o.Leaves)
		defer cancel()
		ctx = short
	}
	read := Read{Way: Asked, Process: p.number, Key: o.Keys[0], Begin: r.h.Now(), Last: o.Last}
	var e tiercache.Entry[string]
	var err error
	if o.Plain {
		read.Stale = true // for all that is known
		e.Value, err = p.cache.Get(ctx, read.Key)
	} else {
		e, err = p.cache.GetEntry(ctx, read.Key)
		read.Stale = e.Stale
	}
	if late := r.h.Now().At - read.Begin.At - o.Leaves; ctx.Err() != nil && r.plan.Event > 0 && p.alive() && late > 0 {
		r.h.breach("P9", "%v: the caller was kept %v longer than it wanted to stay", &read, late)
	}
	var load *tiercache.LoadError
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) && !errors.As(err, &load) {
		r.h.left(read)
		return
	}
	r.answered(p, read, e.Value, err)
}

func (r *run) refresh(p *process, key string) {
	read := Read{Way: Refreshed, Process: p.number, Key: key, Begin: r.h.Now()}
	v, err := p.cache.Refresh(p.ctx, key)
	r.answered(p, read, v, err)
}

func (r *run) getMany(p *process, keys []string) {
	begin := r.h.Now()
	found, err := p.cache.GetMany(p.ctx, keys)
	failed := map[string]error{}
	r.eachError(err, func(err error) {
		var load *tiercache.LoadError
		if errors.As(err, &load) {
			failed[load.Key] = err
			return
		}
		for _, key := range keys { // the call's own
			if _, ok := found[key]; !ok && failed[key] == nil {
				failed[key] = err
			}
		}
	})
	for _, key := range keys {
		read := Read{Way: Batched, Process: p.number, Key: key, Begin: begin, Stale: true}
		v, ok := found[key]
		err := failed[key]
		if !ok && err == nil {
			err = tiercache.ErrNotFound
		}
		r.answered(p, read, v, err)
	}
}

// eachError calls f for each of the errors that were joined.
func (r *run) eachError(err error, f func(error)) {
	var joined interface{ Unwrap() []error }
	switch {
	case err == nil:
	case errors.As(err, &joined):
		for _, err := range joined.Unwrap() {
			f(err)
		}
	default:
		f(err)
	}
}

// answered records an answer.
func (r *run) answered(p *process, read Read, v string, err error) {
	if !p.alive() {
		return
	}
	switch {
	case errors.Is(err, tiercache.ErrNotFound):
		read.Absent = true
	case err != nil:
		read.Err = err
	default:
		key, version, by, ok := parseValue(v)
		if !ok || key != read.Key {
			r.h.breach("P12", "%s of %q by process %d: got %q, which is no value of it", read.Way, read.Key, read.Process, v)
			return
		}
		read.Version, read.By = version, by
	}
	r.h.read(read)
}

// ended records the end of writes that were one call.
func (r *run) ended(p *process, err error, writes ...*Write) {
	ack := Done
	switch {
	case !p.alive():
		return
	case errors.Is(err, tiercache.ErrPending):
		ack = Pending
	case err != nil && !errors.Is(err, errWrite):
		r.h.breach("P7", "%s by process %d: unexpected error: %v", writes[0].Kind, p.number, err)
	}
	r.h.change(func(now Moment) {
		for _, w := range writes {
			w.End, w.Ack = now, ack
		}
	})
}

// writes records the begin of one call that writes keys.
func (r *run) writes(kind Kind, p *process, keys []string) []*Write {
	all := make([]*Write, len(keys))
	for i, key := range keys {
		all[i] = r.h.write(kind, p.number, key)
		all[i].Row = r.db.newest(key)
	}
	return all
}

func (r *run) invalidate(p *process, o Op) {
	for _, key := range o.Keys {
		r.db.commit(key, o.Delete)
	}
	if nap(p.ctx, o.Pause[0]) != nil {
		return
	}
	w := r.writes(Invalidated, p, o.Keys)
	r.ended(p, p.cache.Invalidate(p.ctx, o.Keys...), w...)
}

// errWrite is the error of a write that fails after it has committed.
var errWrite = errors.New("fleet: the write failed, or so it says")

func (r *run) update(p *process, o Op) {
	w := r.writes(Updated, p, o.Keys)
	trouble := p.cache.Stats().SharedErrors
	err := p.cache.UpdateMany(p.ctx, o.Keys, func(ctx context.Context) error {
		held := p.cache.Stats().SharedErrors == trouble
		if err := nap(ctx, o.Pause[0]); err != nil {
			return err
		}
		for i, key := range o.Keys {
			c := r.db.commit(key, o.Delete)
			r.h.change(func(Moment) { w[i].Row, w[i].Held = c, held })
		}
		err := nap(ctx, o.Pause[1])
		if err == nil && o.Fail {
			err = errWrite
		}
		for i, key := range o.Keys {
			c := r.db.newest(key)
			r.h.change(func(now Moment) { w[i].Since, w[i].Row = now, c })
		}
		return err
	})
	r.ended(p, err, w...)
}

func (r *run) set(p *process, o Op) {
	key := o.Keys[0]
	r.sets[key] <- struct{}{}
	defer func() { <-r.sets[key] }()
	if !p.alive() {
		return
	}
	c := r.db.commit(key, false)
	w := r.h.write(Was, p.number, key)
	w.Row = c
	r.ended(p, p.cache.Set(p.ctx, key, value(c, "S"+strconv.Itoa(w.ID))), w)
}

// insert announces a row that is not there and inserts it: at once, or not at all if the window could be over before the replica has it.
func (r *run) insert(p *process, key string) {
	if !r.db.newest(key).Absent {
		return
	}
	w := r.h.write(Announced, p.number, key)
	err := p.cache.Announce(p.ctx, key)
	late := func(at Moment) bool { return at.At-w.Begin.At > r.plan.Window-r.plan.Lag }
	if err != nil || !p.alive() || late(r.h.Now()) {
		return
	}
	c, ok := r.db.insert(key)
	if !ok || late(c.At) { // then nothing was promised
		return
	}
	r.h.change(func(now Moment) { w.End, w.Ack, w.Row = now, Done, c })
}

// look records what Redis holds.
func (r *run) look(last bool) {
	begin := r.h.Now()
	prefix := "tc:" + r.name + ":"
	generation := uint64(0)
	type found struct{ key, raw string }
	var all []found
	r.site.look(r.name, func(key, raw string, left time.Duration) {
		if left <= 0 {
			r.h.breach("P11", "%q stands in Redis without an expiry", key)
		}
		if key == prefix+"gen" {
			generation, _ = strconv.ParseUint(raw, 10, 64)
		} else if id, ok := strings.CutSuffix(strings.TrimPrefix(key, prefix+"{"), "}"); ok {
			all = append(all, found{id, raw})
		}
	})
	now := time.Now().UnixMilli()
	for _, f := range all {
		read := Read{Way: Stored, Key: f.key, Begin: begin, Last: last}
		if len(f.raw) < 68 || binary.BigEndian.Uint64([]byte(f.raw)[8:]) < generation {
			continue
		}
		flags, hard := f.raw[3], binary.BigEndian.Uint64([]byte(f.raw)[32:])
		if hard <= uint64(now) { // a marker of an announcement, or a value that has become one
			continue
		}
		_, version, by, ok := parseValue(f.raw[68:])
		read.Absent, read.Version, read.By = flags&1 != 0, version, by
		if !read.Absent && !ok {
			r.h.breach("P10", "%q holds %q in Redis", f.key, f.raw)
			continue
		}
		r.h.read(read)
	}
}
