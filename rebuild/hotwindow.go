package rebuild

import (
	"maps"
	"slices"
	"time"
)

// closeWindow judges what was counted, tells the owner, and lets the counts fade. It returns how many keys are hot now.
func (h *HotKeys[K]) closeWindow(now time.Time) int {
	h.mu.Lock()
	took := max(now.Sub(h.began), hotWindow/2).Seconds()
	h.began = now
	h.leaving.sum(took)
	h.answered.sum(took)
	for _, k := range h.hot {
		k.beaten, k.reads = (k.beaten+float64(k.reads)/took)/2, 0
	}
	h.rates = h.ratesLocked()
	cooled := h.coolLocked(h.rates, now)
	heated, displaced := h.heatLocked(h.rates)
	cooled = append(cooled, displaced...)
	h.leaving.endWindow()
	h.answered.endWindow()
	h.beating = slices.Collect(maps.Values(h.hot))
	top := slices.Clone(h.rates)
	h.mu.Unlock()
	for _, k := range cooled {
		h.owner.Cool(k)
	}
	for _, k := range heated {
		h.owner.Heat(k)
	}
	h.owner.Window(top)
	return len(h.beating)
}

// coolLocked takes out the keys that have been below what they need for too long.
func (h *HotKeys[K]) coolLocked(rates []HotKey[K], now time.Time) (cooled []HotKey[K]) {
	for _, rate := range rates {
		k := h.hot[rate.ID]
		switch {
		case k == nil:
		case rate.Rate >= k.need, h.fleet[rate.ID] >= fleetRate*coolShare:
			k.low = time.Time{}
		case k.low.IsZero():
			k.low = now
		case now.Sub(k.low) >= coolAfter:
			delete(h.hot, k.ID)
			cooled = append(cooled, k.HotKey)
		}
	}
	return cooled
}

// heatLocked takes in the keys that are read often enough, first the most, while there is room. Then each of them displaces the one that is
// read least, if that is read half as often at most.
func (h *HotKeys[K]) heatLocked(rates []HotKey[K]) (heated, displaced []HotKey[K]) {
	least := len(rates) - 1
	for i, k := range rates {
		if k.Hot || k.Rate < k.need && h.fleet[k.ID] < fleetRate {
			continue
		}
		if len(h.hot) >= hotMost {
			for least >= 0 && h.hot[rates[least].ID] == nil {
				least--
			}
			if least < 0 || 2*rates[least].Rate > k.Rate {
				break
			}
			displaced = append(displaced, h.hot[rates[least].ID].HotKey)
			delete(h.hot, rates[least].ID)
		}
		k.Hot, rates[i].Hot = true, true
		h.hot[k.ID] = &hotState[K]{HotKey: k, need: min(k.need*coolShare, beatSees)}
		heated = append(heated, k)
	}
	return heated, displaced
}

// ratesLocked returns the keys that are known with their rates, first the largest. A key needs a share of what leaves memory, where that is enough
// to know, else of all reads.
func (h *HotKeys[K]) ratesLocked() []HotKey[K] {
	at := make(map[string]int, len(h.leaving.top.heap)+len(h.hot))
	var all []HotKey[K]
	proven := h.leaving.rate(hotProof)
	need := max(enough(h.leaving.total+h.answered.total), proven)
	note := func(id string, key K, rate float64) *HotKey[K] {
		i, known := at[id]
		if !known {
			i = len(all)
			at[id], all = i, append(all, HotKey[K]{ID: id, Key: key, need: need})
		}
		all[i].Rate += rate
		return &all[i]
	}
	least := max(enough(h.leaving.total), proven)
	for i := range h.leaving.top.heap {
		k := &h.leaving.top.heap[i]
		rate := h.leaving.rate(k.count)
		if known := note(k.id, k.key, rate); rate >= least {
			known.need = least
		}
	}
	answered := make(map[string]float64, len(h.answered.top.heap))
	for i := range h.answered.top.heap {
		k := &h.answered.top.heap[i]
		if k.count >= hotProof {
			answered[k.id] = h.answered.rate(k.count)
			note(k.id, k.key, answered[k.id])
		}
	}
	for id, k := range h.hot { // of what memory answers, the samples or the beats know more
		note(id, k.Key, max(k.beaten-answered[id], 0)).Hot = true
	}
	slices.SortFunc(all, byRate)
	return all
}

// enough is how many reads a second make a key hot where there are so many of all keys.
func enough(total float64) float64 { return min(hotRate, max(total*hotShare, hotLeast)) }
