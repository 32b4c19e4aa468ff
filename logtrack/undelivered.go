package logtrack

import (
	"slices"

	"waybill/relay/event"
	"waybill/relay/mail"
)

// People ask what bounced for a domain or a sender, of whose mail almost
// nothing did: most blocks that have the domain are then read in vain. So the
// facts that tell of an undelivered recipient have index entries of their own,
// under the same values: a few in a hundred facts, and all that such a search
// has to read.

// undelivered are the dispositions of recipients whom a message did not reach.
var undelivered = []mail.Disposition{mail.Bounced, mail.Expired, mail.Dropped}

// undeliveredPosts are the kinds of postings that such facts have twice. Those
// of one message need no second one.
var undeliveredPosts = []byte{postSender, postSenderDomain, postRecipient, postRecipientDomain, postClientIP, postAuthUser}

// undeliveredIndex are the columns with those postings.
var undeliveredIndex = slices.DeleteFunc(slices.Clone(postings), func(x indexed) bool { return !slices.Contains(undeliveredPosts, x.post) })

// undelivered is the posting of the same value in a fact that tells of an
// undelivered recipient.
func (p posting) undelivered() posting {
	const odd = 0x9e3779b97f // of the golden ratio: kinds that share values part
	return posting(postUndelivered)<<56 | (p>>16^posting(p.kind())*odd)&(1<<hashBits-1)<<16
}

// undeliveredPred passes the facts that tell of an undelivered recipient, and
// every search for a disposition of theirs passes only some of them.
var undeliveredPred = func() *pred {
	p := &pred{field: fields["disposition"]}
	words := make([]string, len(undelivered))
	for i, d := range undelivered {
		words[i] = d.String()
	}
	if err := p.dispositions(words); err != nil {
		panic(err) // words of ours
	}
	return p
}()

// undeliveredGetters are, by the name of a fact, where it tells dispositions.
var undeliveredGetters = func() map[string][]getter {
	m := map[string][]getter{}
	for _, p := range plans {
		for _, c := range undeliveredPred.field.nums {
			if g, ok := p.getter(c); ok {
				m[p.name] = append(m[p.name], g)
			}
		}
	}
	return m
}()

// appendUndelivered adds the postings of facts that tell of an undelivered recipient.
func (b *builder) appendUndelivered(posts []posting) []posting {
	told := b.tellsUndelivered()
	for _, run := range b.types {
		all, some := undeliveredPred.fact(run.name), undeliveredGetters[run.name]
		if !all && (some == nil || !told) {
			continue
		}
		for _, i := range b.order[run.start : run.start+run.n] {
			r := &b.recs[i]
			if all || slices.ContainsFunc(some, func(g getter) bool { return g.ints(r, undeliveredPred.num) }) {
				posts = appendUndeliveredFact(posts, r)
			}
		}
	}
	return posts
}

// tellsUndelivered reports whether a fact has a disposition of an undelivered
// recipient among its fields: in most blocks none has.
func (b *builder) tellsUndelivered() bool {
	return slices.ContainsFunc(undeliveredPred.field.nums, func(name string) bool {
		c := b.find(colKey(name, false))
		return c != nil && slices.ContainsFunc(c.nums, undeliveredPred.num)
	})
}

func appendUndeliveredFact(posts []posting, r *event.Record) []posting {
	p := planOf(r)
	for _, x := range undeliveredIndex {
		g, ok := p.getter(x.column)
		if !ok {
			continue
		}
		g.texts(r, func(s string) bool {
			if k := x.key(s); s != "" && k != "" {
				posts = append(posts, postingOf(x.post, k).undelivered())
			}
			return false
		})
	}
	return posts
}

// appendUndeliveredOf is appendUndelivered for a stored block.
func appendUndeliveredOf(posts []posting, v *view) ([]posting, error) {
	hit := make([]bool, v.head.rows)
	if err := undeliveredPred.mark(v, hit); err != nil {
		return nil, err
	}
	if !slices.Contains(hit, true) {
		return posts, nil
	}
	for _, x := range undeliveredIndex {
		if err := v.need(withList(x.column)...); err != nil {
			return nil, err
		}
		c := v.col(x.column)
		if c == nil {
			continue
		}
		seen := make([]bool, len(c.dict))
		v.eachValue(x.column, c, func(row, at int) {
			code := c.codes[at]
			if !hit[row] || seen[code] {
				return
			}
			seen[code] = true
			if k := x.key(c.dict[code]); code > 0 && k != "" {
				posts = append(posts, postingOf(x.post, k).undelivered())
			}
		})
	}
	return posts, nil
}

// eachValue calls visit with each place in a column and the row that it tells of.
func (v *view) eachValue(name string, c *colView, visit func(row, at int)) {
	var counts *colView
	if list, child := isChild(name); child {
		if counts = v.col(colKey(list, false)); counts == nil {
			return
		}
	}
	for t, run := range v.types {
		start := c.start[t]
		if start < 0 {
			continue
		}
		for row := range run.n {
			lo, hi := row, row+1
			if counts != nil {
				lo, hi, _ = counts.elems(t, row)
			}
			for k := lo; k < hi; k++ {
				visit(run.start+row, start+k)
			}
		}
	}
}
