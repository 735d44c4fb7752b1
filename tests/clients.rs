//! stub
mod common;
fn main() {}
